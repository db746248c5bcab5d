package main

import (
	"github.com/cinderlift/cinderlift/internal/qcow2"
	"github.com/cinderlift/cinderlift/strategies"
	"github.com/cinderlift/cinderlift/worker"
)

// encoders are the disk formats besides raw that images can have.
func encoders() map[string]strategies.Encoder {
	return map[string]strategies.Encoder{"qcow2": encodeQcow2}
}

// encodeQcow2 makes an image without compression: one pass, and bytes that do not depend on a library's version.
func encodeQcow2(c strategies.Content) (strategies.File, error) {
	const op = "lay out the qcow2 image"
	m, err := qcow2.NewMap(c.Size(), qcow2.DefaultClusterSize)
	if err != nil {
		return nil, &worker.Error{Op: op, Reason: worker.ReasonNotApplicable, Err: err}
	}
	if err := c.Allocated(m.Add); err != nil {
		return nil, err
	}
	image, err := qcow2.New(m, c)
	if err != nil {
		return nil, &worker.Error{Op: op, Reason: worker.ReasonNotApplicable, Err: err}
	}

	return image, nil
}
