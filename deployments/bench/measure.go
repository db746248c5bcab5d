package main

import (
	"bufio"
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
)

// usage is what processes took of the machine.
type usage struct {
	CPU time.Duration
	Net int64 // bytes over TCP, in and out
	RSS int64 // bytes, at most, of all of them together
}

// meter looks at processes a few times a second. CPU time is the kernel's count; what a process takes between two looks just
// before it ends is missed, so those who start one themselves add its rusage instead (see command). TCP bytes are the
// kernel's as well, of each socket at its last look.
type meter struct {
	pids func() []int

	stop  chan struct{}
	ended sync.WaitGroup

	first, last map[int]time.Duration // CPU by process
	sockets     map[string][2]int64   // bytes by addresses: at the first look, and at the last
	rss         int64
	looks       int
}

const (
	lookEvery = 100 * time.Millisecond
	netEvery  = 3                     // looks; asking for sockets costs a process
	tick      = 10 * time.Millisecond // USER_HZ of Linux on all that Debian supports
)

func measure(pids func() []int) *meter {
	m := &meter{pids: pids, stop: make(chan struct{}), first: map[int]time.Duration{}, last: map[int]time.Duration{},
		sockets: map[string][2]int64{}}
	m.look()
	m.net(true)
	m.ended.Go(func() {
		t := time.NewTicker(lookEvery)
		defer t.Stop()
		for {
			select {
			case <-m.stop:
				return
			case <-t.C:
			}
			m.look()
			if m.looks%netEvery == 0 {
				m.net(false)
			}
		}
	})

	return m
}

func (m *meter) end() usage {
	close(m.stop)
	m.ended.Wait()
	m.look()
	m.net(false)
	u := usage{RSS: m.rss}
	for pid, cpu := range m.last {
		u.CPU += cpu - m.first[pid]
	}
	for _, bytes := range m.sockets {
		u.Net += bytes[1] - bytes[0]
	}

	return u
}

func (m *meter) look() {
	m.looks++
	sum := int64(0)
	for _, pid := range m.pids() {
		cpu, rss, err := stat(pid)
		if err != nil {
			continue // it has ended
		}
		if _, known := m.last[pid]; !known && m.looks == 1 {
			m.first[pid] = cpu // of one that starts later all counts
		}
		m.last[pid] = cpu
		sum += rss
	}
	m.rss = max(m.rss, sum)
}

// stat reads CPU time (fields 14 and 15) and resident memory (24, in pages) of a process: proc_pid_stat(5).
func stat(pid int) (cpu time.Duration, rss int64, err error) {
	f, err := fields(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, 0, err
	}
	if len(f) < 22 {
		return 0, 0, fmt.Errorf("/proc/%d/stat: %d fields", pid, len(f))
	}
	user, err1 := strconv.ParseInt(f[11], 10, 64)
	system, err2 := strconv.ParseInt(f[12], 10, 64)
	pages, err3 := strconv.ParseInt(f[21], 10, 64)
	if err1 != nil || err2 != nil || err3 != nil {
		return 0, 0, fmt.Errorf("/proc/%d/stat: no numbers", pid)
	}

	return time.Duration(user+system) * tick, pages * int64(os.Getpagesize()), nil
}

// fields are those of a stat file from the third on, the state; the name before may hold anything.
func fields(file string) ([]string, error) {
	b, err := os.ReadFile(file)
	_, rest, _ := bytes.Cut(b, []byte(") "))

	return strings.Fields(string(rest)), err
}

// net asks for the sockets of the processes; their bytes are in the line after each.
func (m *meter) net(first bool) {
	pids := m.pids()
	if len(pids) == 0 {
		return
	}
	out, err := exec.Command("ss", "-tinpH").Output() //nolint:noctx // it answers at once
	if err != nil {
		return // the figure will be too low, and zero is seen
	}
	key := ""
	for s := bufio.NewScanner(bytes.NewReader(out)); s.Scan(); {
		if !strings.HasPrefix(s.Text(), "\t") && !strings.HasPrefix(s.Text(), " ") {
			key = ""
			if f := strings.Fields(s.Text()); len(f) > 4 && ofThese(s.Text(), pids) {
				key = f[3] + " " + f[4]
			}

			continue
		}
		if key == "" {
			continue
		}
		n := m.sockets[key]
		if n[1] = counted(s.Text()); first {
			n[0] = n[1]
		}
		m.sockets[key] = n
	}
}

func ofThese(line string, pids []int) bool {
	return slices.ContainsFunc(pids, func(pid int) bool { return strings.Contains(line, fmt.Sprintf(",pid=%d,", pid)) })
}

// counted adds what a socket has sent and received.
func counted(line string) (sum int64) {
	for _, f := range strings.Fields(line) {
		for _, name := range []string{"bytes_sent:", "bytes_received:"} {
			if v, ok := strings.CutPrefix(f, name); ok {
				n, _ := strconv.ParseInt(v, 10, 64) // the kernel's
				sum += n
			}
		}
	}

	return sum
}

// below lists a process and all its descendants.
func below(root int) []int {
	children := map[int][]int{}
	stats, _ := filepath.Glob("/proc/[0-9]*/stat") // the pattern is right
	for _, file := range stats {
		f, err := fields(file)
		if err != nil {
			continue
		}
		pid, _ := strconv.Atoi(filepath.Base(filepath.Dir(file)))
		if len(f) > 1 {
			parent, _ := strconv.Atoi(f[1])
			children[parent] = append(children[parent], pid)
		}
	}
	list := []int{root}
	for i := 0; i < len(list); i++ {
		list = append(list, children[list[i]]...)
	}

	return list
}

// named lists the processes with one of these program names, such as cinder-volume.
func named(names ...string) (pids []int) {
	comms, _ := filepath.Glob("/proc/[0-9]*/comm") // the pattern is right
	for _, file := range comms {
		b, err := os.ReadFile(file)
		if err == nil && slices.Contains(names, strings.TrimSpace(string(b))) {
			pid, _ := strconv.Atoi(filepath.Base(filepath.Dir(file)))
			pids = append(pids, pid)
		}
	}

	return pids
}
