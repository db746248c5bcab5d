package ceph

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/ceph/go-ceph/rados"

	"github.com/cinderlift/cinderlift/strategies"
	"github.com/cinderlift/cinderlift/worker"
)

func TestAwait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		got, err := await(t.Context(), func() (int, error) { return 7, nil }, nil)
		if got != 7 || err != nil {
			t.Errorf("%d, %v; want 7", got, err)
		}
	})
}

func TestAwaitLetsGo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		var undone []int
		began := time.Now()
		_, err := await(ctx, func() (int, error) {
			<-time.After(time.Hour) // a call into librbd while an OSD is away

			return 7, nil
		}, func(n int) { undone = append(undone, n) })
		if !errors.Is(err, context.DeadlineExceeded) || time.Since(began) != time.Second {
			t.Errorf("returned %v after %v", err, time.Since(began))
		}
		<-time.After(2 * time.Hour)
		synctest.Wait()
		if len(undone) != 1 || undone[0] != 7 {
			t.Errorf("undone is %v, want the value that came too late", undone)
		}
	})
}

func TestAwaitDoesNotBegin(t *testing.T) {
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(worker.ErrLeaseLost)
	_, err := await(ctx, func() (int, error) { t.Error("it ran"); return 0, nil }, nil)
	if !errors.Is(err, worker.ErrLeaseLost) {
		t.Errorf("error %v, want the context's cause", err)
	}
}

// idleImages has no connection: only what is around the calls is tested.
func idleImages() *Images {
	im := &Images{busy: map[strategies.Ref]chan struct{}{}}
	im.line.link.Store(&link{conn: &rados.Conn{}}) // librados makes nothing before it connects
	im.ctx, im.stop = context.WithCancelCause(context.Background())

	return im
}

var a, b = strategies.Ref{Pool: "images", Image: "a"}, strategies.Ref{Pool: "images", Image: "b"}

func TestDoSerialisesByImage(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		im := idleImages()
		hang := make(chan struct{})
		short, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		err := im.do(short, "flatten", a, func(context.Context) error { <-hang; return nil })
		if worker.ReasonOf(err) != worker.ReasonStopping {
			t.Errorf("a call that hangs: %v", err)
		}
		if err := im.do(t.Context(), "stat", b, func(context.Context) error { return nil }); err != nil {
			t.Errorf("another image: %v", err)
		}
		second := make(chan error)
		go func() { second <- im.do(t.Context(), "discard", a, func(context.Context) error { return nil }) }()
		synctest.Wait()
		select {
		case err := <-second:
			t.Errorf("the same image was not waited for: %v", err)
		default:
		}
		close(hang)
		if err := <-second; err != nil {
			t.Error(err)
		}
	})
}

func TestShutWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		im := idleImages()
		ended := false
		go func() {
			err := im.do(t.Context(), "flatten", a, func(ctx context.Context) error {
				<-ctx.Done() // the progress callback of a flatten looks at it
				<-time.After(time.Second)
				ended = true

				return context.Cause(ctx)
			})
			if worker.ReasonOf(err) != worker.ReasonStopping {
				t.Errorf("stopped call: %v", err)
			}
		}()
		synctest.Wait()
		<-im.shut()
		if !ended {
			t.Error("shut did not wait")
		}
		err := im.do(t.Context(), "stat", b, func(context.Context) error { t.Error("it ran"); return nil })
		if worker.ReasonOf(err) != worker.ReasonStopping {
			t.Errorf("a call after the end: %v", err)
		}
		<-im.shut()
		synctest.Wait()
	})
}

func TestDoWithFinishedContext(t *testing.T) {
	im := idleImages()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := im.do(ctx, "stat", a, func(context.Context) error { t.Error("it ran"); return nil }); err == nil {
		t.Error("it succeeded")
	}
	<-im.shut() // nothing is left running or reserved
	if len(im.busy) != 0 {
		t.Errorf("still reserved: %v", im.busy)
	}
}
