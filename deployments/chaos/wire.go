package main

import (
	"context"
	"crypto/rand"
	_ "embed"
	"encoding/json"
	"strings"
	"time"

	"github.com/cinderlift/cinderlift/internal/lab"
	"github.com/cinderlift/cinderlift/internal/oslo"
)

// golden is what cinder-api of the Zed release casts with volume_api_class.
//
//go:embed request.json
var golden []byte

const (
	exchange = "openstack"
	topic    = "cinder-image-upload"

	// canary looks like a token and is none: the audit finds it wherever a worker would keep one.
	canary = "gAAAAAB-chaos-canary"
)

// wire publishes requests as cinder-api does.
type wire struct {
	bus  *oslo.Bus
	stop func()
}

func newWire(ctx context.Context, l *lab.Lab) (*wire, error) {
	t, err := oslo.ParseTransportURL(l.Env["LAB_TRANSPORT_URL"])
	if err != nil {
		return nil, err
	}
	b, err := oslo.New(oslo.Options{Transport: t, Topic: "cinderlift-chaos", Name: "chaos"})
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_ = b.Run(ctx) // ends with ctx, without an error
	}()

	return &wire{bus: b, stop: func() { cancel(); <-ended }}, nil
}

// frame is the message; it differs between two calls in its _unique_id alone.
func (w *wire) frame(a lab.Asked, project string) (oslo.Message, error) {
	var m map[string]any
	if err := json.Unmarshal(golden, &m); err != nil {
		return oslo.Message{}, err
	}
	args, _ := m["args"].(map[string]any)
	meta, _ := args["image_meta"].(map[string]any)
	volume, _ := args["volume"].(map[string]any)
	args["volume_id"], volume["id"], volume["name"], volume["project_id"] = a.Volume, a.Volume, "volume-"+a.Volume, project
	meta["id"], meta["name"], meta["owner"], meta["file"] = a.Image, a.Name, project, "/v2/images/"+a.Image+"/file"
	m["_context_project_id"], m["_context_project"] = project, project
	m["_context_auth_token"], m["_unique_id"] = canary, strings.ToLower(rand.Text())
	m["_context_request_id"] = "req-" + a.Image
	inner, err := json.Marshal(m)
	if err != nil {
		return oslo.Message{}, err
	}
	body, err := json.Marshal(map[string]string{"oslo.version": "2.0", "oslo.message": string(inner)})

	return oslo.Message{Body: body}, err
}

// send publishes with the mandatory flag and waits for the confirm.
func (w *wire) send(ctx context.Context, m oslo.Message) error {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()

	return w.bus.Publish(ctx, exchange, topic, m, true)
}
