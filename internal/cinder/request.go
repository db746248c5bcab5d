package cinder

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"regexp"
	"strings"

	"github.com/cinderlift/cinderlift/internal/oslo"
	"github.com/cinderlift/cinderlift/worker"
)

// served is what we answer to. Cinder has sent copy_volume_to_image with version 3.0 since Ocata and has raised its own
// RPC version to 3.20 meanwhile (cinder ab09bc3 volume/rpcapi.py:135-145); the arguments never changed, so every 3.x is
// taken that cinder-volume would take.
const servedVersion = "3.99"

// Methods of Cinder's volume RPC API.
const (
	methodCopy    = "copy_volume_to_image"
	methodVersion = "3.0" // of what we send to cinder-volume; every manager since Newton serves it
)

// DefaultExchange is oslo.messaging's control_exchange, which Cinder does not override.
const DefaultExchange = "openstack"

// maxImageMeta bounds what is kept of the image's description. Cinder's own are below 2 KiB; Glance allows 128 properties.
const maxImageMeta = 256 << 10

var (
	uuidForm = regexp.MustCompile(`^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$`)

	// formatForm is wider than the formats that Glance ships with, because operators add their own (glance-api.conf
	// [image_format] disk_formats). A format that we can't make is declined, and Cinder makes it; a message that we
	// refuse would leave its volume in `uploading`.
	formatForm = regexp.MustCompile(`^[a-z0-9][a-z0-9._-]{0,31}$`)

	// projectForm allows what Keystone's drivers make: 32 hex digits, or any id of an external directory up to 64.
	projectForm = regexp.MustCompile(`^[A-Za-z0-9_.-]{1,64}$`)

	// queueForm is what cinder-volume listens on: cinder-volume.<host@backend>.<host> (cinder ab09bc3
	// service.py:252-269). A result can thus not be sent to another service's queue.
	queueForm = regexp.MustCompile(`^cinder-volume\.[A-Za-z0-9_.:-]{1,100}@[A-Za-z0-9_.:-]{1,100}\.[A-Za-z0-9_.:-]{1,100}$`)

	methodForm = regexp.MustCompile(`^[a-z][a-z0-9_]{0,63}$`)
)

// done is where to cast the result.
type done struct {
	Exchange   string `json:"exchange"`
	RoutingKey string `json:"routing_key"`
	Method     string `json:"method"`
}

// check refuses everything but a method of a cinder-volume service on the cloud's own exchange.
func (d done) check(exchange string) error {
	switch {
	case d.Exchange != exchange:
		return fmt.Errorf("done.exchange is not the control exchange %q", exchange)
	case !queueForm.MatchString(d.RoutingKey):
		return errors.New("done.routing_key is not cinder-volume.<host@backend>.<host>")
	case !methodForm.MatchString(d.Method):
		return errors.New("done.method is not a method name")
	}

	return nil
}

// request holds the checked arguments of copy_volume_to_image.
type request struct {
	volumeID  string
	imageID   string
	disk      string
	container string
	project   string
	imageMeta json.RawMessage
	done      *done
}

// parse checks a request. Errors name fields and never repeat a value from the message.
func parse(r oslo.Request, exchange string) (request, error) {
	if failure := refuse(r); failure != nil {
		return request{}, badRequest(failure)
	}
	q := request{project: r.Context.ProjectID(), imageMeta: r.Args["image_meta"]}
	if err := q.readArgs(r.Args, exchange); err != nil {
		return request{}, badRequest(err)
	}

	return q, nil
}

// refuse answers like a Python server would.
func refuse(r oslo.Request) *oslo.Failure {
	return oslo.Target{Version: servedVersion, Methods: []string{methodCopy}}.Refuse(r)
}

func (q *request) readArgs(args map[string]json.RawMessage, exchange string) error {
	var meta struct {
		ID              string `json:"id"`
		DiskFormat      string `json:"disk_format"`
		ContainerFormat string `json:"container_format"`
	}
	if len(q.imageMeta) > maxImageMeta {
		return fmt.Errorf("image_meta has %d bytes, at most %d are taken", len(q.imageMeta), maxImageMeta)
	}
	if err := read(args, "volume_id", &q.volumeID); err != nil {
		return err
	}
	if err := read(args, "image_meta", &meta); err != nil {
		return err
	}
	q.imageID, q.disk, q.container = meta.ID, meta.DiskFormat, meta.ContainerFormat
	if err := q.readDone(args, exchange); err != nil {
		return err
	}

	return q.check()
}

// readDone: absent and null mean that nobody waits for a result.
func (q *request) readDone(args map[string]json.RawMessage, exchange string) error {
	raw, ok := args["done"]
	if !ok || string(raw) == "null" {
		return nil
	}
	q.done = &done{}
	if err := read(args, "done", q.done); err != nil {
		return err
	}

	return q.done.check(exchange)
}

func (q *request) check() error {
	for _, field := range []struct {
		name, value string
		form        *regexp.Regexp
	}{
		{"volume_id", q.volumeID, uuidForm},
		{"image_meta.id", q.imageID, uuidForm},
		{"image_meta.disk_format", q.disk, formatForm},
		{"image_meta.container_format", q.container, formatForm},
		{"the context's project_id", q.project, projectForm},
	} {
		if !field.form.MatchString(field.value) {
			return fmt.Errorf("%s is missing or not of its form", field.name)
		}
	}

	return nil
}

// digest is the same for repeated requests. It leaves out what differs between two sendings of the same request (message
// ids, the time, the token, where to answer) and what a user may change meanwhile (the image's name and properties).
func (q *request) digest() string {
	text := strings.Join([]string{methodCopy, q.volumeID, q.imageID, q.disk, q.container, q.project}, "\n")
	sum := sha256.Sum256([]byte(text))

	return hex.EncodeToString(sum[:])
}

// read decodes one argument. encoding/json's own errors quote the value, so they are not passed on.
func read(args map[string]json.RawMessage, name string, into any) error {
	raw, ok := args[name]
	if !ok {
		return fmt.Errorf("%s is missing", name)
	}
	if err := json.Unmarshal(raw, into); err != nil {
		return fmt.Errorf("%s has a member of a wrong type", name)
	}

	return nil
}

func badRequest(err error) error {
	return &worker.Error{Op: "read request", Reason: worker.ReasonBadRequest, Advice: worker.GiveUp, Err: err}
}
