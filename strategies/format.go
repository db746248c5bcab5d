package strategies

import (
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"

	"github.com/cinderlift/cinderlift/worker"
)

// formatRaw is the disk format that a volume has as it is.
const formatRaw = "raw"

// bare is the container that is none.
const bare = "bare"

// File is an image as it is sent to Glance. Size is in bytes, and exact. Close ends what runs for it.
type File interface {
	io.ReadSeekCloser
	Size() int64
}

// Encoder makes an image in another format than raw and bare, while it is read, of an open snapshot, which the caller closes
// after the file. It may read all of the snapshot, to learn how long the file becomes. The same snapshot has to give the same
// bytes: after an adoption they are compared with what Glance has. An error of the content is handed through.
type Encoder func(c Content) (File, error)

// Formats are what ExportUpload can make besides raw and bare.
type Formats struct {
	// Encoders by name. The name is in the journal of jobs under way, so that a changed configuration can't change their bytes.
	Encoders map[string]Encoder

	// Use has the name of the encoder for a disk format in a container, such as qcow2/bare.
	Use map[string]string
}

// rawOnly refuses what can't be made inside the cluster without converting it.
func rawOnly(strategy string, j worker.Job) error {
	if isRaw(j) {
		return nil
	}

	return notServed(strategy, j, []string{rawBare})
}

const rawBare = formatRaw + "/" + bare

// isRaw: the image is to hold the volume's bytes as they are.
func isRaw(j worker.Job) bool { return j.DiskFormat == formatRaw && j.ContainerFormat == bare }

func notServed(strategy string, j worker.Job, served []string) error {
	return worker.NotApplicable(strategy, fmt.Sprintf("the image is to be %s/%s, only %s is served", j.DiskFormat,
		j.ContainerFormat, strings.Join(served, " or ")))
}

// encoder picks what makes the job's image; "" for raw and bare.
func (f Formats) encoder(strategy string, j worker.Job) (name string, err error) {
	if isRaw(j) {
		return "", nil
	}
	name = f.Use[j.DiskFormat+"/"+j.ContainerFormat]
	if f.Encoders[name] == nil {
		return "", notServed(strategy, j, append([]string{rawBare}, slices.Sorted(maps.Keys(f.Use))...))
	}

	return name, nil
}

// encode makes what is sent of a snapshot. Whoever watches the step sees what is read for it before the upload begins, in
// bytes; read is how many these were.
func (f Formats) encode(name string, c Content, p worker.Progress) (file File, read int64, err error) {
	if name == "" {
		return c, 0, nil
	}
	encoder := f.Encoders[name]
	if encoder == nil {
		return nil, 0, &worker.Error{Op: "encode " + name, Reason: worker.ReasonInternal,
			Err: fmt.Errorf("a job was begun that needs %s, which this worker can't make", name)}
	}
	from := &watched{Content: c, progress: p}
	file, err = encoder(from)
	from.progress = nil

	return file, from.read, err
}

// watched is a content of which somebody sees how much is read.
type watched struct {
	Content
	progress worker.Progress // nil: nobody looks
	read     int64
}

func (w *watched) Read(p []byte) (int, error) {
	n, err := w.Content.Read(p)
	if w.progress != nil {
		w.read += int64(n)
		w.progress(worker.Amount{Worker: w.read})
	}

	return n, err
}
