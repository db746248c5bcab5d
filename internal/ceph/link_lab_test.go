//go:build lab

package ceph

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/ceph/go-ceph/rados"
	"github.com/ceph/go-ceph/rbd"

	"github.com/cinderlift/cinderlift/strategies"
	"github.com/cinderlift/cinderlift/worker"
)

// parked waits until the claim has no connection any more.
func parked(t *testing.T, cl *Claim) {
	t.Helper()
	cl.Park()
	hungUp(t, cl)
}

// hungUp waits for that alone.
func hungUp(t *testing.T, cl *Claim) {
	t.Helper()
	eventually(t, "park", 10*time.Second, func() error {
		if addr := cl.Images().address(); addr != "" {
			return errors.New("the connection is still there: " + addr)
		}

		return nil
	})
	cl.Images().line.mu.Lock() // until it has been closed
	defer cl.Images().line.mu.Unlock()
}

// noted is the address that a successor would fence.
func noted(t *testing.T, c *Cluster, key string) string {
	t.Helper()
	e, err := load(controlOf(t, c).io, key)
	must(t, err)

	return e.addr
}

// leasesOf makes a cluster whose leases last for ttl and that may have so many connections, and a job in it.
func leasesOf(t *testing.T, ttl time.Duration, connections int) (c *Cluster, rec worker.Record) {
	t.Helper()
	o := labOptions(t)
	o.Namespace, o.LeaseTTL, o.Connections = "cinderlift-test-"+newID(), ttl, connections
	c, rec = labCluster(t, o), fresh()
	wipe(t, c)
	must(t, c.Create(t.Context(), rec))

	return c, rec
}

// use does something over the connection of a claim.
func use(ctx context.Context, cl *Claim) error {
	return cl.Images().do(ctx, "use", strategies.Ref{Pool: cl.c.opts.JournalPool, Image: "none"}, func(context.Context) error {
		_, err := cl.Images().conn().GetClusterStats()

		return err
	})
}

// TestParkedConnectsAnew: the work goes on over another connection, which a successor would fence before it is used.
func TestParkedConnectsAnew(t *testing.T) {
	t.Parallel()
	c, rec := leasesOf(t, 30*time.Second, 1)
	cl := adopt(t, c, rec.Job.Key())
	for range 3 {
		before := noted(t, c, rec.Job.Key())
		if got := cl.Images().address(); got != before {
			t.Fatalf("the address is %q, that in the journal %q", got, before)
		}
		parked(t, cl)
		if len(c.places) != 0 {
			t.Error("a parked claim has a place")
		}
		must(t, use(t.Context(), cl))
		if after := noted(t, c, rec.Job.Key()); after == before || after != cl.Images().address() {
			t.Errorf("the address is %q, that in the journal was %q and is %q", cl.Images().address(), before, after)
		}
	}
	must(t, cl.Release(t.Context()))
	if addr := noted(t, c, rec.Job.Key()); addr != "" {
		t.Errorf("after the release the journal has the address %q", addr)
	}
	if err := use(t.Context(), cl); !errors.Is(err, worker.ErrStopping) {
		t.Errorf("after the release: %v, want ErrStopping", err)
	}
}

// TestParkedWaitsForWork: what is under way is neither cut off nor waited for.
func TestParkedWaitsForWork(t *testing.T) {
	t.Parallel()
	c, rec := leasesOf(t, 30*time.Second, 1)
	cl := adopt(t, c, rec.Job.Key())
	addr, inside, goOn, ended := cl.Images().address(), make(chan struct{}), make(chan struct{}), make(chan error)
	go func() {
		ended <- cl.Images().do(t.Context(), "work", strategies.Ref{}, func(context.Context) error {
			close(inside)
			<-goOn

			return cl.Images().conn().WaitForLatestOSDMap()
		})
	}()
	<-inside
	cl.Park()
	if _, err := cl.Images().FSID(t.Context()); err != nil || cl.Images().address() != addr {
		t.Errorf("beside it: %v, over %q, want %q", err, cl.Images().address(), addr)
	}
	cl.Park()
	cl.Images().hangUpIdle() // in this goroutine: it has looked when it returns
	if got := cl.Images().address(); got != addr {
		t.Fatalf("the connection became %q under a user", got)
	}
	close(goOn)
	must(t, <-ended)
	hungUp(t, cl)
	must(t, cl.Release(t.Context()))
}

// TestParkedAndLost: a claim whose job a successor has taken meanwhile gets no connection to do anything with.
func TestParkedAndLost(t *testing.T) {
	t.Parallel()
	c, rec := leasesOf(t, 2*time.Second, 2)
	cl := adopt(t, c, rec.Job.Key())
	parked(t, cl)
	next := adopt(t, c, rec.Job.Key())
	for range 2 {
		if err := use(t.Context(), cl); !errors.Is(err, worker.ErrLeaseLost) || worker.AdviceOf(err) != worker.StandBy {
			t.Errorf("work of the owner before: %v, want ErrLeaseLost", err)
		}
		if _, err := cl.Images().FSID(t.Context()); !errors.Is(err, worker.ErrLeaseLost) {
			t.Errorf("a question of the owner before: %v, want ErrLeaseLost", err)
		}
	}
	if got, want := noted(t, c, rec.Job.Key()), next.Images().address(); got != want {
		t.Errorf("the journal has the address %q, want the successor's, %q", got, want)
	}
	must(t, use(t.Context(), next))
	must(t, cl.Release(t.Context()))
	must(t, next.Release(t.Context()))
}

// TestExpiredWhileParked: a lease that nobody has taken but that has ended is lost all the same.
func TestExpiredWhileParked(t *testing.T) {
	t.Parallel()
	c, rec := leasesOf(t, 2*time.Second, 2)
	cl := adopt(t, c, rec.Job.Key())
	parked(t, cl)
	eventually(t, "the lease ends", 10*time.Second, func() error {
		return controlOf(t, c).free(rec.Job.Key(), rec.Job.VolumeID)
	})
	if err := use(t.Context(), cl); !errors.Is(err, worker.ErrLeaseLost) {
		t.Errorf("work: %v, want ErrLeaseLost", err)
	}
	must(t, cl.Release(t.Context()))
}

// namespaced is the journal's namespace over a claim's own connection, before whose end it has to be destroyed.
func namespaced(t *testing.T, cl *Claim) *rados.IOContext {
	t.Helper()
	io, err := ioctx(cl.Images().conn(), cl.c.opts.JournalPool)
	must(t, err)
	io.SetNamespace(cl.c.opts.Namespace)

	return io
}

// TestFencedAfterParking: a successor fences the connection that is used now, not the first one.
func TestFencedAfterParking(t *testing.T) {
	t.Parallel()
	c, rec := leasesOf(t, 2*time.Second, 2)
	cl := adopt(t, c, rec.Job.Key())
	parked(t, cl)
	must(t, use(t.Context(), cl))
	before := namespaced(t, cl)
	must(t, before.WriteFull("object", []byte("before")))
	next := adopt(t, c, rec.Job.Key())
	after := namespaced(t, next)
	must(t, after.WriteFull("object", []byte("after"))) // its OSD knows now who is fenced
	if err := before.WriteFull("object", []byte("too late")); !is(err, eshutdown) {
		t.Errorf("a write of the owner before: %v, want ESHUTDOWN", err)
	}
	before.Destroy()
	after.Destroy()
	must(t, next.Release(t.Context()))
	_ = cl.Release(t.Context()) // its connection is gone
}

// TestConnectionIsNotNoted: a new connection whose address could not be written down, or of which nobody knows whether it
// was, is not used; the next has an address of its own.
func TestConnectionIsNotNoted(t *testing.T) {
	t.Parallel()
	for name, applied := range map[string]bool{"not applied": false, "applied but reported failed": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c, rec := leasesOf(t, 30*time.Second, 1)
			cl := adopt(t, c, rec.Job.Key())
			parked(t, cl)
			announce, tried := cl.Images().line.announce, ""
			cl.Images().line.announce = func(addr string) error {
				if tried != "" {
					return announce(addr)
				}
				tried = addr
				if applied {
					must(t, announce(addr))
				}

				return rados.ErrNotFound // whatever
			}
			err := use(t.Context(), cl)
			if err == nil || cl.Images().address() != "" {
				t.Fatalf("it is used although nobody knows whether it was noted: %v, %q", err, cl.Images().address())
			}
			if got := noted(t, c, rec.Job.Key()) == tried; got != applied {
				t.Errorf("it is in the journal: %v, want %v", got, applied)
			}
			must(t, use(t.Context(), cl))
			if got := noted(t, c, rec.Job.Key()); got != cl.Images().address() || got == tried {
				t.Errorf("the address is %q, that in the journal %q", cl.Images().address(), got)
			}
			must(t, cl.Release(t.Context()))
		})
	}
}

// TestReleaseWhileConnecting: a connection that comes too late for its claim is closed and does nothing.
func TestReleaseWhileConnecting(t *testing.T) {
	t.Parallel()
	c, rec := leasesOf(t, 30*time.Second, 1)
	cl := adopt(t, c, rec.Job.Key())
	parked(t, cl)
	connecting, released, ended := make(chan struct{}), make(chan struct{}), make(chan error)
	announce := cl.Images().line.announce
	cl.Images().line.announce = func(addr string) error {
		close(connecting)
		<-released

		return announce(addr)
	}
	go func() { ended <- use(t.Context(), cl) }()
	<-connecting
	must(t, cl.Release(t.Context())) // after linger
	if err := <-ended; !errors.Is(err, worker.ErrStopping) {
		t.Errorf("the work ended with %v, want ErrStopping", err)
	}
	close(released)
	next := adopt(t, c, rec.Job.Key())
	eventually(t, "the late connection ends", 10*time.Second, func() error {
		if cl.Images().line.users.inside() > 0 {
			return errors.New("it is still in use")
		}

		return nil
	})
	if got, want := noted(t, c, rec.Job.Key()), next.Images().address(); got != want || cl.Images().address() != "" {
		t.Errorf("the journal has the address %q, want %q; the late one is %q", got, want, cl.Images().address())
	}
	must(t, next.Release(t.Context()))
}

// TestPlaces: a claim waits for a place without a lease, and finds out what became of the job meanwhile.
func TestPlaces(t *testing.T) {
	t.Parallel()
	c, one := leasesOf(t, 30*time.Second, 1)
	other := labCluster(t, c.opts)
	cl := adopt(t, c, one.Job.Key())
	type answer struct {
		claim worker.Claim
		err   error
	}
	ask := func(ctx context.Context, key string) chan answer {
		got := make(chan answer, 1)
		go func() {
			claim, err := c.Claim(ctx, key)
			got <- answer{claim, err}
		}()

		return got
	}
	two, three, four := fresh(), fresh(), fresh()
	for _, rec := range []worker.Record{two, three, four} {
		must(t, c.Create(t.Context(), rec))
	}
	if _, err := c.Claim(t.Context(), one.Job.Key()); !errors.Is(err, worker.ErrHeld) {
		t.Errorf("claim of a job that is held, without a place: %v, want ErrHeld at once", err)
	}
	taken := ask(t.Context(), two.Job.Key())
	stolen := ask(t.Context(), three.Job.Key())
	short, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	if a := <-ask(short, four.Job.Key()); !errors.Is(a.err, context.DeadlineExceeded) {
		t.Errorf("claim that nobody waits for any more: %v", a.err)
	}
	for _, rec := range []worker.Record{three, four} {
		must(t, adopt(t, other, rec.Job.Key()).Release(t.Context())) // nobody has a lease on them
	}
	thief := adopt(t, other, three.Job.Key())
	parked(t, cl)
	a := <-taken
	must(t, a.err)
	must(t, use(t.Context(), cl)) // without a place: it has been in
	must(t, a.claim.Release(t.Context()))
	if a := <-stolen; !errors.Is(a.err, worker.ErrHeld) {
		t.Errorf("claim of what others have taken meanwhile: %v, want ErrHeld", a.err)
	}
	must(t, thief.Release(t.Context()))
	must(t, cl.Release(t.Context()))
	if len(c.places) != 0 {
		t.Errorf("%d places are taken at the end", len(c.places))
	}
}

// TestFlattenAfterParking: a flatten over another connection than the one that made the clone.
func TestFlattenAfterParking(t *testing.T) {
	t.Parallel()
	r := labRig(t)
	c, rec := leasesOf(t, 30*time.Second, 1)
	cl := adopt(t, c, rec.Job.Key())
	im := cl.Images()
	m := sealed(t, r, im, 4)
	parked(t, cl)
	must(t, im.Flatten(t.Context(), m, nil))
	must(t, im.reading(m.Dst, rbd.NoSnapshot, func(image *rbd.Image) error {
		info, err := image.GetParent()
		if err == nil {
			t.Errorf("the image still has the parent %v", info)
		}

		return nil
	}))
	must(t, cl.Release(t.Context()))
}
