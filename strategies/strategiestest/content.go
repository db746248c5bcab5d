package strategiestest

import (
	"bytes"
	"context"
	"errors"
	"io"

	"github.com/cinderlift/cinderlift/worker"
)

// content is an open snapshot.
type content struct {
	c    *Cluster
	ctx  context.Context // of Open: reads end with it
	data []byte

	object int64 // bytes of one

	pos  int64
	shut bool
}

func (r *content) Size() int64 { return int64(len(r.data)) }

func (r *content) Read(p []byte) (n int, err error) {
	err = r.c.at(r.ctx, "read", "read the snapshot", func() error {
		if r.shut {
			return fault("read the snapshot", worker.ReasonInternal, worker.GiveUp, errors.New("it is closed"))
		}
		from := bytes.NewReader(r.data)
		if _, err := from.Seek(r.pos, io.SeekStart); err != nil {
			return err
		}
		var err error
		n, err = from.Read(p)
		r.pos += int64(n)

		return err
	})

	return n, err
}

func (r *content) Seek(offset int64, whence int) (int64, error) {
	from := bytes.NewReader(r.data)
	if _, err := from.Seek(r.pos, io.SeekStart); err != nil {
		return 0, err
	}
	pos, err := from.Seek(offset, whence)
	if err == nil {
		r.pos = pos
	}

	return pos, err
}

// Allocated tells whole objects, as Ceph does.
func (r *content) Allocated(found func(from, to int64) error) error {
	return r.c.at(r.ctx, "read", "look for holes of the snapshot", func() error {
		for from := int64(0); from < r.Size(); from += r.object {
			to := min(from+r.object, r.Size())
			if len(bytes.Trim(r.data[from:to], "\x00")) == 0 {
				continue
			}
			if err := found(from, to); err != nil {
				return err
			}
		}

		return nil
	})
}

func (r *content) Close() error {
	r.shut = true

	return nil
}
