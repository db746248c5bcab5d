package strategies

import (
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/cinderlift/cinderlift/worker"
)

// formatRaw is the disk format that a volume has as it is.
const formatRaw = "raw"

// File is an image as it is sent to Glance. Size is in bytes.
type File interface {
	io.ReadSeeker
	Size() int64
}

// Encoder makes an image in another format than raw, while it is read, of an open snapshot, which the caller closes
// afterwards. The same snapshot has to give the same bytes: after an adoption they are compared with what Glance has. An
// error of the content is handed through.
type Encoder func(c Content) (File, error)

// rawOnly refuses what can't be made inside the cluster without converting it.
func rawOnly(strategy string, j worker.Job) error {
	return served(strategy, j, []string{formatRaw})
}

// served refuses what is not bare, or none of these disk formats.
func served(strategy string, j worker.Job, formats []string) error {
	if slices.Contains(formats, j.DiskFormat) && j.ContainerFormat == "bare" {
		return nil
	}

	return worker.NotApplicable(strategy, fmt.Sprintf("the image is to be %s/%s, only %s/bare is served", j.DiskFormat,
		j.ContainerFormat, strings.Join(formats, " or ")))
}

// formats lists what ExportUpload can make.
func (d Deps) formats() []string {
	list := []string{formatRaw}
	for name := range d.Encoders {
		list = append(list, name)
	}
	slices.Sort(list[1:])

	return list
}

// encode makes what is sent of a job's snapshot.
func (d Deps) encode(format string, c Content) (File, error) {
	if format == formatRaw {
		return c, nil
	}
	encoder := d.Encoders[format]
	if encoder == nil {
		return nil, &worker.Error{Op: "encode " + format, Reason: worker.ReasonInternal,
			Err: fmt.Errorf("a job was begun that needs %s, which this worker can't make", format)}
	}

	return encoder(c)
}
