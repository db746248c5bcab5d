package main

import (
	"io"
	"runtime"

	"github.com/cinderlift/cinderlift/internal/gzipped"
	"github.com/cinderlift/cinderlift/internal/qcow2"
	"github.com/cinderlift/cinderlift/strategies"
	"github.com/cinderlift/cinderlift/worker"
)

// Names of the encoders, which are in the journal.
const (
	encodePlain  = "qcow2" // in one pass; all others take two
	encodeSparse = "qcow2-sparse"
	encodeZlib   = "qcow2-zlib"
	encodeZstd   = "qcow2-zstd"
	encodeGzip   = "raw+gzip"
	encodeBoth   = "qcow2+gzip"
)

// qcow2Kinds are what CINDERLIFT_QCOW2 may be, with the encoder of each.
func qcow2Kinds() map[string]string {
	return map[string]string{"plain": encodePlain, "sparse": encodeSparse, "zlib": encodeZlib, "zstd": encodeZstd}
}

// formats are what images can be besides raw and bare.
func (c *config) formats() strategies.Formats {
	return strategies.Formats{
		Encoders: map[string]strategies.Encoder{
			encodePlain:  qcow2File((*plan).plain),
			encodeSparse: qcow2File((*plan).sparse),
			encodeZlib:   qcow2File(func(p *plan) (file, error) { return p.compressed(qcow2.Zlib) }),
			encodeZstd:   qcow2File(func(p *plan) (file, error) { return p.compressed(qcow2.Zstd) }),
			encodeGzip:   func(s strategies.Content) (strategies.File, error) { return gzipOf(s) },
			encodeBoth: func(s strategies.Content) (strategies.File, error) {
				f, err := qcow2File((*plan).plain)(s)
				if err != nil {
					return nil, err
				}

				return gzipOf(f)
			},
		},
		Use: map[string]string{
			"qcow2/bare": qcow2Kinds()[c.Qcow2], "raw/compressed": encodeGzip, "qcow2/compressed": encodeBoth,
		},
	}
}

// compressors is how many work on one image: each of them needs 4 MiB, and several images are exported at a time.
func compressors() int { return min(2, runtime.GOMAXPROCS(0)) }

func gzipOf(src io.ReadSeeker) (strategies.File, error) {
	f, err := gzipped.New(src, compressors())
	if err != nil {
		return nil, err // and no file that looks like one
	}

	return f, nil
}

// plan is a qcow2 file before it is laid out.
type plan struct {
	m    *qcow2.Map
	disk io.ReadSeeker
}

// file is what qcow2 makes; nothing runs for it between two reads.
type file interface {
	io.ReadSeeker
	Size() int64
}

func (p *plan) plain() (file, error) { return qcow2.New(p.m, p.disk) }

func (p *plan) sparse() (file, error) {
	if err := p.m.DropZeros(p.disk); err != nil {
		return nil, err
	}

	return qcow2.New(p.m, p.disk)
}

func (p *plan) compressed(by qcow2.Compression) (file, error) {
	return qcow2.Compress(p.m, p.disk, by, compressors())
}

// closable is a file of which nothing has to be ended.
type closable struct{ file }

func (closable) Close() error { return nil }

// qcow2File makes a qcow2 file with what exists on a snapshot. What does not fit into the format can't be served; what the
// snapshot says when it fails is handed through.
func qcow2File(lay func(*plan) (file, error)) strategies.Encoder {
	return func(c strategies.Content) (strategies.File, error) {
		m, err := qcow2.NewMap(c.Size(), qcow2.DefaultClusterSize)
		if err != nil {
			return nil, unfit(err)
		}
		if err := c.Allocated(m.Add); err != nil {
			return nil, err
		}
		f, err := lay(&plan{m, c})
		if worker.ReasonOf(err) == worker.ReasonInternal {
			err = unfit(err)
		}
		if err != nil {
			return nil, err
		}

		return closable{f}, nil
	}
}

func unfit(err error) error {
	return &worker.Error{Op: "lay out the qcow2 image", Reason: worker.ReasonNotApplicable, Err: err}
}
