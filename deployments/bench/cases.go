package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/cinderlift/cinderlift/internal/lab"
)

// Names of the cases.
const (
	filled = "40 % data"
	thin   = "thin"
	burst  = "burst"

	besides = "beside"
)

func (b *bench) everything(ctx context.Context) error {
	if err := b.admin.Room(ctx, b.demo.Project()); err != nil {
		return err
	}
	var err error
	if b.first, err = b.volume(ctx, 1, 0); err != nil {
		return err
	}
	defer b.drop(ctx, b.first)
	for _, gib := range b.opt.Sizes {
		if err := b.sideBySide(ctx, filled, gib, 40, b.tools()); err != nil {
			return err
		}
	}
	if err := b.beside(ctx); err != nil {
		return err
	}
	for _, gib := range b.opt.Thin {
		ours := slices.DeleteFunc(b.tools(), func(t tool) bool { return t.name != early && t.name != late && t.name != copying })
		if err := b.sideBySide(ctx, thin, gib, 0, ours); err != nil {
			return err
		}
	}
	for _, workers := range b.opt.Workers {
		if b.opt.Burst == 0 {
			break
		}
		if err := b.burst(ctx, workers); err != nil {
			return err
		}
	}

	return nil
}

// tools are those that were chosen.
func (b *bench) tools() []tool {
	return slices.DeleteFunc(tools(), func(t tool) bool { return len(b.opt.Tools) > 0 && !slices.Contains(b.opt.Tools, t.name) })
}

// sideBySide runs the tools in turns on one volume.
func (b *bench) sideBySide(ctx context.Context, what string, gib, percent int, list []tool) error {
	volume, err := b.volume(ctx, gib, percent)
	if err != nil {
		return err
	}
	defer b.drop(ctx, volume)
	digest := ""
	if percent > 0 {
		if digest, err = b.lab.Digest(ctx, "volumes/volume-"+volume); err != nil {
			return err
		}
	}
	runs := b.opt.Runs
	if gib >= b.opt.Once {
		runs = 1
	}
	for range runs {
		for _, t := range list {
			last, err := b.once(ctx, t, volume, digest)
			if err != nil {
				return fmt.Errorf("%s, %d GiB: %w", t.name, gib, err)
			}
			b.report.add(what, t.name, gib, last)
			b.say("%-9s %4d GiB  %-20s active %6.2f s, released %6.2f s, CPU %6.2f s, %7.1f MiB over the network, %4d MiB RSS", what, gib,
				t.name, last.active.Seconds(), last.released.Seconds(), last.CPU.Seconds(), float64(last.Net)/(1<<20), last.RSS>>20)
		}
	}

	return nil
}

// once runs one tool. Its worker is new, so that its memory is that of this run, and has done one job before: what a worker
// does once, such as to sign in, is not what an image takes. Stock Cinder runs all the time as well.
func (b *bench) once(ctx context.Context, t tool, volume, digest string) (took, error) {
	if err := b.plug(ctx, t); err != nil {
		return took{}, err
	}
	var w *lab.Worker
	if t.set != nil {
		var err error
		if w, err = b.lab.StartWorker(ctx, t.set, "", nil); err != nil {
			return took{}, err
		}
		defer func() { _ = w.Stop() }() // an error shows in what it did
		if _, err := t.run(ctx, b, w, b.first, ""); err != nil {
			return took{}, fmt.Errorf("the worker's first job: %w", err)
		}
	}
	begin := time.Now()
	done, err := t.run(ctx, b, w, volume, digest)
	done.begin = begin

	return done, err
}

// plug sets Cinder and Ceph up for a tool. Restarting Cinder takes seconds, so it is done only when it has to be.
func (b *bench) plug(ctx context.Context, t tool) error {
	if t.hook+t.caps == b.hooked {
		return nil
	}
	b.hooked = ""
	if err := b.lab.Control(ctx, "caps", t.caps); err != nil {
		return err
	}
	if err := b.lab.Control(ctx, "hook", t.hook); err != nil {
		return err
	}
	b.hooked = t.hook + t.caps

	return nil
}

func (b *bench) volume(ctx context.Context, gib, percent int) (string, error) {
	id, err := b.demo.CreateVolume(ctx, lab.VolumeSpec{Name: fmt.Sprintf("bench-%d", gib), GiB: gib})
	if err != nil || percent == 0 {
		return id, err
	}
	_, err = b.lab.Fill(ctx, "volumes/volume-"+id, 40, percent)

	return id, err
}

func (b *bench) drop(ctx context.Context, volume string) {
	if err := b.demo.DeleteVolume(context.WithoutCancel(ctx), volume); err != nil {
		b.say("%v", err)
	}
}

// burst is many requests at once: they wait in the queue when the workers start. Cinder's API takes half a second for each here,
// so a hundred that come over it are not at once.
func (b *bench) burst(ctx context.Context, workers int) (err error) {
	const gib = 100
	if err := b.plug(ctx, tools()[slices.IndexFunc(tools(), func(t tool) bool { return t.name == early })]); err != nil {
		return err
	}
	volumes := make([]string, b.opt.Burst)
	defer func() {
		_ = b.each(volumes, func(n int) error { b.drop(ctx, volumes[n]); return nil }) // said there
	}()
	if err := b.each(volumes, func(n int) (err error) { volumes[n], err = b.volume(ctx, gib, 0); return err }); err != nil {
		return err
	}
	images, err := b.ask(ctx, volumes)
	if err != nil {
		return err
	}
	p := &pool{}
	defer p.stop()
	m := measure(p.pids)
	begin := time.Now()
	t := took{}
	if err = p.start(ctx, b.lab, workers); err == nil {
		err = b.allActive(ctx, images)
	}
	t.active = time.Since(begin)
	if err == nil {
		err = b.each(volumes, func(n int) error { return b.demo.WaitVolume(ctx, volumes[n], "available") })
	}
	t.released, t.usage = time.Since(begin), m.end()
	if err != nil {
		return err
	}
	b.report.add(burst, fmt.Sprintf("%s, %d workers", early, workers), gib, t)
	b.say("%d volumes of %d GiB, %d workers: all active after %.1f s, all released after %.1f s, CPU %.1f s, %d MiB RSS",
		len(volumes), gib, workers, t.active.Seconds(), t.released.Seconds(), t.CPU.Seconds(), t.RSS>>20)

	return b.each(images, func(n int) error { return b.demo.RemoveImage(ctx, images[n]) })
}

// ask has Cinder put a request for each volume into the queue, which a worker has to have declared before.
func (b *bench) ask(ctx context.Context, volumes []string) ([]string, error) {
	p := &pool{}
	err := p.start(ctx, b.lab, 1)
	p.stop()
	images := make([]string, len(volumes))
	if err == nil {
		err = b.each(volumes, func(n int) (err error) {
			images[n], err = b.demo.Upload(ctx, volumes[n], lab.Raw("bench"))

			return err
		})
	}

	return images, err
}

// pool is some workers, for which early is set.
type pool struct {
	mu      sync.Mutex
	workers []*lab.Worker
}

// start starts so many at the same time and waits until they are ready.
func (p *pool) start(ctx context.Context, l *lab.Lab, workers int) error {
	var all sync.WaitGroup
	errs := make([]error, workers)
	for n := range workers {
		all.Go(func() {
			w, err := l.StartWorker(ctx, map[string]string{"CINDERLIFT_REGISTER": "early", "CINDERLIFT_NAME": fmt.Sprint("bench-", n)}, "", nil)
			if errs[n] = err; err == nil {
				p.mu.Lock()
				p.workers = append(p.workers, w)
				p.mu.Unlock()
			}
		})
	}
	all.Wait()

	return errors.Join(errs...)
}

func (p *pool) pids() (pids []int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, w := range p.workers {
		pids = append(pids, w.Pid)
	}

	return pids
}

func (p *pool) stop() {
	for _, w := range p.workers {
		_ = w.Stop() // an error shows in what it did
	}
}

// allActive waits with one request for all images, now and then: a hundred who ask would be what is measured.
func (b *bench) allActive(ctx context.Context, images []string) error {
	return lab.Wait(ctx, "all images to be active", func() (bool, error) {
		if err := pause(ctx, time.Second); err != nil {
			return false, err
		}
		all, err := b.demo.Images(ctx)
		active := 0
		for _, i := range all {
			if i.Status == "active" && slices.Contains(images, i.ID) {
				active++
			}
		}

		return active == len(images), err
	})
}

// each does something for each of a list, ten at a time.
func (*bench) each(list []string, f func(n int) error) error {
	var mu sync.Mutex
	var all error
	var w sync.WaitGroup
	places := make(chan struct{}, 10)
	for n := range list {
		places <- struct{}{}
		w.Go(func() {
			defer func() { <-places }()
			if err := f(n); err != nil {
				mu.Lock()
				defer mu.Unlock()
				all = errors.Join(all, err)
			}
		})
	}
	w.Wait()

	return all
}
