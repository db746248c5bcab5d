package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"os/signal"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"github.com/dustin/go-humanize"
	"github.com/joho/godotenv"

	"github.com/cinderlift/cinderlift/internal/ceph"
)

// byteRate is a number of bytes, such as 200MiB; empty is 0.
type byteRate int64

// mostRate keeps what follows from a rate within 64 bits.
const mostRate = 1 << 50

// Decode reads the number as people write it.
func (r *byteRate) Decode(v string) error {
	if v == "" {
		*r = 0

		return nil
	}
	n, err := humanize.ParseBytes(v)
	if err != nil || n > mostRate {
		return fmt.Errorf("%q is not a number of bytes per second, such as 200MiB", v)
	}
	*r = byteRate(n)

	return nil
}

// Names of the settings that can be changed while a worker runs.
const (
	copyObjects    = "CINDERLIFT_COPY_OBJECTS"
	copyJobObjects = "CINDERLIFT_COPY_JOB_OBJECTS"
	copyRate       = "CINDERLIFT_COPY_RATE"
	copyJobRate    = "CINDERLIFT_COPY_JOB_RATE"
	exportRate     = "CINDERLIFT_EXPORT_RATE"
)

// leastExportRate keeps an upload from looking as if it had stopped.
const leastExportRate = 1 << 20

// limits are what the environment says, and over it what the file says, if there is one.
func (c *config) limits() (ceph.Limits, error) {
	l := ceph.Limits{Objects: c.CopyObjects, JobObjects: c.CopyJobObjects, Rate: int64(c.CopyRate), JobRate: int64(c.CopyJobRate),
		ExportRate: int64(c.ExportRate)}
	if c.LimitsFile == "" {
		return l, checkLimits(l)
	}
	set, err := godotenv.Read(c.LimitsFile)
	if err != nil {
		return l, fmt.Errorf("CINDERLIFT_LIMITS_FILE: %w", err)
	}
	for _, name := range slices.Sorted(maps.Keys(set)) {
		if err := override(&l, name, set[name]); err != nil {
			return l, fmt.Errorf("CINDERLIFT_LIMITS_FILE %s: %w", c.LimitsFile, err)
		}
	}

	return l, checkLimits(l)
}

func override(l *ceph.Limits, name, value string) (err error) {
	var rate byteRate
	switch name {
	case copyObjects:
		l.Objects, err = strconv.Atoi(value)
	case copyJobObjects:
		l.JobObjects, err = strconv.Atoi(value)
	case copyRate:
		err = rate.Decode(value)
		l.Rate = int64(rate)
	case copyJobRate:
		err = rate.Decode(value)
		l.JobRate = int64(rate)
	case exportRate:
		err = rate.Decode(value)
		l.ExportRate = int64(rate)
	default:
		return fmt.Errorf("%s can't be set there; these can: %s", name,
			strings.Join([]string{copyObjects, copyJobObjects, copyRate, copyJobRate, exportRate}, ", "))
	}
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}

	return nil
}

func checkLimits(l ceph.Limits) error {
	if l.ExportRate != 0 && l.ExportRate < leastExportRate {
		return fmt.Errorf("%s: %d is below %d bytes per second", exportRate, l.ExportRate, leastExportRate)
	}

	return cmp.Or(between(copyObjects, l.Objects, 1024), between(copyJobObjects, l.JobObjects, 1024))
}

// hangUps listens for SIGHUP, which would end the process otherwise.
func hangUps() (signals chan os.Signal, stop func()) {
	signals = make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGHUP)

	return signals, func() { signal.Stop(signals) }
}

// reload reads the limits again at each signal until ctx ends. What can't be read changes nothing.
func (c *config) reload(ctx context.Context, signals <-chan os.Signal, change func(ceph.Limits), log *slog.Logger) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-signals:
		}
		l, err := c.limits()
		if err == nil && c.LimitsFile == "" {
			err = errors.New("CINDERLIFT_LIMITS_FILE is not set, so there is nothing to read")
		}
		if err != nil {
			log.Error("SIGHUP: the limits stay as they are", "error", err)

			continue
		}
		change(l)
		log.Info("SIGHUP: the limits are read again", "limits", l.String())
	}
}
