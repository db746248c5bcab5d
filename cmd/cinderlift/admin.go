package main

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"time"

	"github.com/cinderlift/cinderlift/worker"
)

// readiness answers 200, or 503 with the reasons why no work is taken.
func readiness(gate *worker.Gate) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		away := gate.Closed()
		body, err := json.Marshal(map[string]any{"ready": len(away) == 0, "away": away})
		if err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)

			return
		}
		w.Header().Set("Content-Type", "application/json")
		if len(away) > 0 {
			w.WriteHeader(http.StatusServiceUnavailable)
		}
		_, _ = w.Write(append(body, '\n')) // a probe that hung up needs no answer
	}
}

// probe asks now and then whether what a worker needs is there, until ctx ends. A probe that hangs counts as away.
func probe(ctx context.Context, gate *worker.Gate, every time.Duration, what string, ask func(context.Context) error) {
	for {
		try, cancel := context.WithTimeoutCause(ctx, every, errors.New("no answer in "+every.String()))
		err := ask(try)
		if err != nil && try.Err() != nil && ctx.Err() == nil {
			err = context.Cause(try)
		}
		cancel()
		if ctx.Err() != nil {
			return
		}
		gate.Set(what, err)
		select {
		case <-ctx.Done():
			return
		case <-time.After(every):
		}
	}
}

// adminServer serves the metrics and the probes. /livez says only that the process answers: restarting it does not
// bring a broker back.
func adminServer(metrics, ready http.Handler) *http.Server {
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", metrics)
	mux.Handle("GET /readyz", ready)
	mux.HandleFunc("GET /livez", func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte("ok\n")) })

	return &http.Server{Handler: mux, ReadHeaderTimeout: 5 * time.Second, MaxHeaderBytes: 16 << 10}
}

// serveAdmin listens at once, so that an address in use is found before any work is taken, and serves until ctx ends.
func serveAdmin(ctx context.Context, address string, s *http.Server, log *slog.Logger) (stop func(), err error) {
	var lc net.ListenConfig
	l, err := lc.Listen(ctx, "tcp", address)
	if err != nil {
		return nil, err
	}
	log.Info("serving /metrics, /livez and /readyz", "address", l.Addr().String())
	var w sync.WaitGroup
	w.Go(func() {
		if err := s.Serve(l); !errors.Is(err, http.ErrServerClosed) {
			log.Error("serve metrics and probes", "error", err)
		}
	})

	return func() { _ = s.Close(); w.Wait() }, nil // scrapers come again
}
