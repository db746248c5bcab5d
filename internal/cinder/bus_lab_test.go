//go:build lab

package cinder

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/cinderlift/cinderlift/internal/oslo"
	"github.com/cinderlift/cinderlift/worker"
)

// The names are the tests' own and fixed, so that runs leave nothing behind but the same empty queues.
const (
	labExchange = "cinderlift-test"
	labTopic    = "cinder-image-upload-test"
	labVolume   = "cinder-volume.test@rbd.test"
)

// labTransport reads the lab's environment file.
func labTransport(t *testing.T) oslo.Transport {
	t.Helper()
	f, err := os.Open(os.Getenv("CINDERLIFT_LAB_ENV"))
	if err != nil {
		t.Fatalf("the lab is not up, or CINDERLIFT_LAB_ENV does not name its file: %v", err)
	}
	defer f.Close()
	for lines := bufio.NewScanner(f); lines.Scan(); {
		if url, ok := strings.CutPrefix(lines.Text(), "LAB_TRANSPORT_URL="); ok {
			tr, err := oslo.ParseTransportURL(strings.Trim(url, "'"))
			if err != nil {
				t.Fatal(err)
			}

			return tr
		}
	}
	t.Fatal("the lab's file has no LAB_TRANSPORT_URL")

	return oslo.Transport{}
}

// labBus runs a bus until the test ends. Its queue is empty.
func labBus(t *testing.T, topic string) *oslo.Bus {
	t.Helper()
	b, err := oslo.New(oslo.Options{
		Transport: labTransport(t), Exchange: labExchange, Topic: topic, DeadLetter: labTopic + ".dead",
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	ended := make(chan struct{})
	go func() { _ = b.Run(ctx); close(ended) }()
	t.Cleanup(func() { stop(); <-ended })
	for {
		drain, end := context.WithTimeout(ctx, 2*time.Second)
		d, err := b.Receive(drain)
		end()
		if err == nil {
			_ = d.Ack()

			continue
		}
		if b.State().Ready() {
			return b
		}
	}
}

func receive(t *testing.T, b *oslo.Bus) *oslo.Delivery {
	t.Helper()
	ctx, stop := context.WithTimeout(context.Background(), 10*time.Second)
	defer stop()
	d, err := b.Receive(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if d.DecodeError != nil {
		t.Fatal(d.DecodeError)
	}
	if err := d.Ack(); err != nil {
		t.Fatal(err)
	}

	return d
}

// request publishes a golden request as Cinder does, with the result to go to labVolume, and takes it as a worker.
func (l *labWorld) request(t *testing.T, file string) worker.Job {
	t.Helper()
	m := golden(t, file)
	if d, ok := args(m)["done"].(map[string]any); ok {
		d["exchange"], d["routing_key"] = labExchange, labVolume
	}
	body := must(json.Marshal(map[string]string{"oslo.version": "2.0", "oslo.message": string(must(json.Marshal(m)))}))
	ctx, stop := context.WithTimeout(context.Background(), 10*time.Second)
	defer stop()
	if err := l.worker.Publish(ctx, labExchange, labTopic, oslo.Message{Body: body}, true); err != nil {
		t.Fatal(err)
	}
	d, err := NewSource(OnBus(l.worker), SourceOptions{Exchange: labExchange}).Receive(ctx)
	if err != nil {
		t.Fatal(err)
	}
	j, err := d.Job()
	if err != nil {
		t.Fatal(err)
	}
	if err := d.Ack(); err != nil {
		t.Fatal(err)
	}

	return j
}

type labWorld struct {
	worker, volume *oslo.Bus
}

func (l *labWorld) settler(w *world) *Settler {
	return NewSettler(OnBus(l.worker), w.cinder, w.glance, SettlerOptions{
		Exchange: labExchange, Topic: labTopic + ".notifications", Patience: time.Nanosecond, Logger: slog.New(slog.DiscardHandler),
	})
}

func (l *labWorld) settle(t *testing.T, w *world, o worker.Outcome) {
	t.Helper()
	for _, s := range l.settler(w).Settle(w.job, o) {
		if s.Name == stepSee {
			w.cinder.becomes(w.cinder.after()) // by the cinder-volume of the test
		}
		ctx, stop := context.WithTimeout(context.Background(), 10*time.Second)
		if err := s.Do(ctx, nil); err != nil {
			t.Errorf("step %s: %v", s.Name, err)
		}
		stop()
	}
}

// TestOverRabbitMQ: requests come in and results go out over a real broker.
func TestOverRabbitMQ(t *testing.T) {
	l := &labWorld{worker: labBus(t, labTopic), volume: labBus(t, labVolume)}

	t.Run("result", func(t *testing.T) {
		w := newWorld(t, "cast-manager.json")
		w.job = l.request(t, "cast-manager.json")
		l.settle(t, w, failed)
		r := receive(t, l.volume).Request
		if r.Method != "image_upload_done" || string(r.Args["error"]) != `"pool images is full"` || !r.Context.AuthToken().IsZero() {
			t.Errorf("cinder-volume got %s(%s)", r.Method, r.Args["error"])
		}
		if w.glance.discards != 1 {
			t.Error("the image is still there")
		}
	})
	t.Run("declined", func(t *testing.T) {
		w := newWorld(t, "cast-manager.json")
		w.job = l.request(t, "cast-manager.json")
		l.settle(t, w, declined)
		r := receive(t, l.volume).Request
		if string(r.Args["declined"]) != "true" || r.Context.AuthToken().Reveal() != canary {
			t.Errorf("cinder-volume got %s(declined: %s)", r.Method, r.Args["declined"])
		}
	})
	t.Run("handed back", func(t *testing.T) {
		w := newWorld(t, "cast-api.json")
		w.job = l.request(t, "cast-api.json")
		w.cinder.volume.Host = "test@rbd#pool"
		l.settle(t, w, declined)
		if r := receive(t, l.volume).Request; r.Method != methodCopy || r.Context.AuthToken().Reveal() != canary {
			t.Errorf("cinder-volume got %s", r.Method)
		}
	})
	t.Run("nobody there", func(t *testing.T) {
		w := newWorld(t, "cast-api.json")
		w.job = l.request(t, "cast-api.json")
		w.cinder.volume.Host = "nobody@rbd#pool"
		l.settle(t, w, declined)
		if w.cinder.frees != 1 || w.glance.discards != 1 {
			t.Errorf("freed %d, discarded %d", w.cinder.frees, w.glance.discards)
		}
	})
	t.Run("the caller is gone", func(t *testing.T) {
		r := oslo.Request{MsgID: "m", ReplyQueue: "reply_of_nobody", MonitorTimeout: 8 * time.Second}
		ctx, stop := context.WithTimeout(context.Background(), 10*time.Second)
		defer stop()
		if err := OnBus(l.worker).Heartbeat(ctx, r); !errors.Is(err, oslo.ErrUnroutable) {
			t.Errorf("error = %v", err)
		}
	})
}
