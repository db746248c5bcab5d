package ceph

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/cinderlift/cinderlift/worker"
)

const (
	lockName = "lease"

	// mustRenew is LIBRADOS_LOCK_FLAG_MUST_RENEW: a lock that has expired is not taken again, even when it is free
	// (include/rados/librados.h:90). go-ceph has no name for it.
	mustRenew = byte(1 << 1)

	lockClass     = "lock"
	lockAssert    = "assert_locked" // ceph 16.2.15 cls/lock/cls_lock.cc:583: EBUSY unless this client has the lock
	lockExclusive = 1               // cls/lock/cls_lock_types.h ClsLockType::EXCLUSIVE
)

// Claim is a job's record under lease, with the connection over which the job's work in RBD is done. It implements
// worker.Claim.
//
// After a successor has the job, what this claim can still do is nothing: its connection is fenced; Save and leave compare
// the epoch; Renew needs the lock that the successor has; unlock and sweep name this claim's own cookie.
type Claim struct {
	c      *Cluster
	k      *control // that took the locks; only it can renew them
	key    string
	cookie string
	record worker.Record
	images *Images
	taken  time.Time
	open   bool // the record, as far as this claim knows

	mu     sync.Mutex // of held: Release may be repeated
	held   []string   // objects whose lease is ours
	closed bool       // the connection is
}

var _ worker.Claim = (*Claim)(nil)

// Claim implements worker.Journal. It waits while Options.Connections jobs of this worker have a connection, holding no lease
// yet. When it returns because ctx is done, a lease that it had just taken is given back in the background.
func (c *Cluster) Claim(ctx context.Context, key string) (worker.Claim, error) {
	cl, err := on(ctx, c, func(k *control) (*Claim, error) { return c.claim(ctx, k, key) }, func(cl *Claim) { cl.abandon() })
	if err != nil {
		return nil, named("claim job "+key, err)
	}

	return cl, nil
}

// claim does everything in the order that safety needs: take the leases, fence the owner before, raise the epoch with
// our own address in it, and only then let anyone use the connection. A crash anywhere leaves leases that expire, and an
// address that whoever comes next fences.
func (c *Cluster) claim(ctx context.Context, k *control, key string) (*Claim, error) {
	volumeID, err := k.claimable(key)
	if err != nil {
		return nil, err
	}
	if !c.places.tryEnter() {
		if volumeID, err = c.queue(ctx, k, key); err != nil {
			return nil, err
		}
	}
	cl := &Claim{c: c, k: k, key: key, cookie: c.opts.Owner + "/" + rand.Text(), taken: time.Now(), closed: true}
	if err := cl.take(ctx, volumeID); err != nil {
		if cl.images == nil {
			c.places.leave() // else it goes with the connection
		}
		cl.abandon() //nolint:contextcheck // giving the lease back must not end with ctx

		return nil, err
	}

	return cl, nil
}

// queue waits for a place, and looks again: others may have taken the job meanwhile, or ended it.
func (c *Cluster) queue(ctx context.Context, k *control, key string) (volumeID string, err error) {
	if err := c.places.enter(ctx); err != nil {
		return "", err
	}
	if volumeID, err = k.claimable(key); err != nil {
		c.places.leave()
	}

	return volumeID, err
}

// claimable answers the volume of a job whose leases nobody has.
func (k *control) claimable(key string) (volumeID string, err error) {
	e, err := load(k.io, key)
	if err != nil {
		return "", err
	}
	if err := known(e.record); err != nil {
		return "", err
	}

	return e.record.Job.VolumeID, k.free(key, e.record.Job.VolumeID)
}

// known answers ErrNewer for a record of which this release can't know what it means.
func known(r worker.Record) error {
	if r.Version > worker.RecordVersion {
		return fmt.Errorf("version %d, this is %d: %w", r.Version, worker.RecordVersion, worker.ErrNewer)
	}

	return nil
}

// free answers ErrHeld when either lease is somebody's. Only looking: a lock that is refused is an entry in the log of the
// placement group on every replica (ceph 16.2.15 osd/PrimaryLogPG.cc record_write_error), and most claims of a scan are
// for jobs that live. Expired locks are not listed.
func (k *control) free(key, volumeID string) error {
	for _, object := range []string{jobPrefix + key, volumePrefix + volumeID} {
		info, err := k.io.ListLockers(object, lockName)
		if err != nil && !is(err, enoent) {
			return fmt.Errorf("look at the lease %s: %w", object, err)
		}
		if err == nil && info.NumLockers > 0 {
			return fmt.Errorf("%s: %w", object, worker.ErrHeld)
		}
	}

	return nil
}

// take makes the lease that it has just taken a condition of reading the address to fence and of raising the epoch. A
// process that slept in between for longer than the lease would otherwise fence its successor, which lives.
func (cl *Claim) take(ctx context.Context, volumeID string) error {
	for _, object := range []string{jobPrefix + cl.key, volumePrefix + volumeID} {
		if err := cl.lock(object); err != nil {
			return err
		}
	}
	e, err := loadIf(cl.k.io, cl.key, cl.assertion()) // again: the owner before may have written until now
	if err != nil {
		return err
	}
	if err := known(e.record); err != nil {
		return err
	}
	images, err := cl.c.connectImages()
	if err != nil {
		return err
	}
	images.line.place, images.line.announce = cl.c.places.leave, cl.announce
	cl.images, cl.closed = images, false
	images.recall(e.filled)
	images.note = cl.note
	if e.addr != "" && e.addr != cl.k.addr {
		if err := cl.c.fence(cl.k, e.addr); err != nil { //nolint:contextcheck // bounded by itself: giving up early would leave open whether it was fenced
			return err
		}
		if err := barrier(ctx, images.conn()); err != nil {
			return fmt.Errorf("wait for the OSD map that fences %s: %w", e.addr, err)
		}
	}

	before := history(e.fenced, e.addr)
	images.fenced = fencedBefore(before)

	return cl.enter(e.record, before)
}

// assertion is cls_lock_assert_op (cls/lock/cls_lock_ops.h): version 1, compatible with 1, length, and then name, type,
// cookie and an empty tag.
func (cl *Claim) assertion() []byte {
	le := binary.LittleEndian
	text := func(b []byte, s string) []byte { return append(le.AppendUint32(b, uint32(len(s))), s...) }
	body := text(append(text(nil, lockName), lockExclusive), cl.cookie)
	body = text(body, "")

	return append(le.AppendUint32([]byte{1, 1}, uint32(len(body))), body...)
}

// lock takes one lease. Whatever the answer was, Release tries to give it back.
func (cl *Claim) lock(object string) error {
	result, err := cl.k.io.LockExclusive(object, lockName, cl.cookie, "", cl.c.opts.LeaseTTL, nil)
	switch {
	case err != nil:
		cl.held = append(cl.held, object)

		return fmt.Errorf("lock %s: %w", object, err)
	case -result == int(ebusy): // go-ceph answers it without an error
		return fmt.Errorf("%s: %w", object, worker.ErrHeld)
	default: // 0, or EEXIST: it is ours already
		cl.held = append(cl.held, object)

		return nil
	}
}

// enter raises the epoch and writes our address, and those of the owners before us.
func (cl *Claim) enter(r worker.Record, before string) error {
	from := r.Epoch
	r.Epoch, r.Owner = from+1, cl.c.opts.Owner
	err := cl.k.own(cl.key, from, r.Epoch, cl.assertion(), map[string][]byte{
		keyOwner: []byte(r.Owner), keyAddr: []byte(cl.images.address()), keyFenced: []byte(before),
	})
	if errors.Is(err, errEpoch) {
		return fmt.Errorf("another worker raised the epoch: %w", worker.ErrHeld)
	}
	cl.record, cl.open = r, !r.Closed

	return err
}

// announce notes the address of another connection of this claim. It is a write that only the owner of the lease can do, in
// the moment in which it is done: a successor who takes the lease after it reads this address and fences it, and one who has
// taken it makes it fail. The epoch alone would not do, because a successor raises it after it has read whom to fence.
func (cl *Claim) announce(addr string) error {
	err := cl.k.users.enter()
	if err == nil {
		defer cl.k.users.leave()
		err = cl.k.own(cl.key, cl.record.Epoch, cl.record.Epoch, cl.assertion(), map[string][]byte{keyAddr: []byte(addr)})
		go cl.c.judge(cl.k, err) // waits while another connection is being made
	}
	if errors.Is(err, errEpoch) || is(err, eshutdown) || errors.Is(err, errSilent) {
		return fmt.Errorf("%w: %w", worker.ErrLeaseLost, err)
	}

	return err
}

// Taken implements worker.Claim.
func (cl *Claim) Taken() time.Time { return cl.taken }

// Park implements worker.Claim.
func (cl *Claim) Park() { cl.images.park() }

// Record implements worker.Claim.
func (cl *Claim) Record() worker.Record { return cl.record }

// Images is RBD over the claim's own connection, which a successor fences. It must not be used after Release.
func (cl *Claim) Images() *Images { return cl.images }

// Save implements worker.Claim. The epoch is compared on the OSD, so a record that a successor has taken over can't be
// overwritten, however late the write arrives.
func (cl *Claim) Save(ctx context.Context, r worker.Record) error {
	r.Epoch, r.Owner = cl.record.Epoch, cl.record.Owner
	raw, err := json.Marshal(r)
	if err != nil {
		return refuse("save job "+cl.key, worker.ReasonInternal, worker.GiveUp, "encode the record: %w", err)
	}
	err = onErr(ctx, cl.c, func(k *control) error {
		return k.update(cl.key, r.Epoch, map[string][]byte{keyRecord: raw})
	})
	if errors.Is(err, errEpoch) {
		err = fmt.Errorf("another worker has the job: %w", worker.ErrLeaseLost)
	}
	if err == nil {
		cl.open = !r.Closed
	}

	return classify("save job "+cl.key, err)
}

// note writes what is being filled into the record's object. The record itself belongs to the runner.
func (cl *Claim) note(raw []byte) error {
	err := onErr(cl.images.ctx, cl.c, func(k *control) error {
		return k.update(cl.key, cl.record.Epoch, map[string][]byte{keyFilled: raw})
	})
	if errors.Is(err, errEpoch) {
		return fmt.Errorf("another worker has the job: %w", worker.ErrLeaseLost)
	}

	return err
}

// Renew implements worker.Claim. It goes over the control connection, where no data can be in its way. A lock that was
// taken over a connection that is gone is lost: see control.
func (cl *Claim) Renew(ctx context.Context) error {
	err := throughErr(ctx, &cl.k.users, func() error {
		err := cl.renewAll()
		go cl.c.judge(cl.k, err) // waits while another connection is being made

		return err
	})
	if is(err, eshutdown) || errors.Is(err, errSilent) {
		err = fmt.Errorf("%w: %w", worker.ErrLeaseLost, err)
	}

	return classify("renew the lease on job "+cl.key, err)
}

func (cl *Claim) renewAll() error {
	for _, object := range cl.leases() { // waits for a Release, so not before ctx is looked at
		if err := cl.renew(object); err != nil {
			return err
		}
	}

	return nil
}

func (cl *Claim) leases() []string {
	cl.mu.Lock()
	defer cl.mu.Unlock()

	return append([]string(nil), cl.held...)
}

func (cl *Claim) renew(object string) error {
	flags := mustRenew
	result, err := cl.k.io.LockExclusive(object, lockName, cl.cookie, "", cl.c.opts.LeaseTTL, &flags)
	switch {
	case is(err, enoent), -result == int(ebusy):
		return fmt.Errorf("%s: %w", object, worker.ErrLeaseLost)
	case err != nil:
		return fmt.Errorf("lock %s: %w", object, err)
	default:
		return nil
	}
}

// Release implements worker.Claim. The order matters: first the connection can do nothing more, then the journal stops
// asking a successor to fence it, then the leases go, then others hear of it.
func (cl *Claim) Release(ctx context.Context) error {
	open := cl.open
	err := awaitErr(ctx, func() error {
		cl.mu.Lock()
		defer cl.mu.Unlock()
		if len(cl.held) == 0 && cl.closed {
			return nil
		}
		if err := cl.disconnect(ctx); err != nil {
			return err
		}
		err := onErr(ctx, cl.c, cl.give)
		if err == nil && open {
			cl.c.notify(ctx)
		}

		return err
	})

	return classify("release job "+cl.key, err)
}

// give gives the job back over any control connection. The volume's lease goes first, with its object: as long as our
// address is in the record, whoever finds the job closed knows that something may be left, and comes to give it back.
func (cl *Claim) give(k *control) error {
	if err := cl.unlock(k, 1); err != nil {
		return err
	}
	if err := cl.leave(k); err != nil {
		return err
	}

	return cl.unlock(k, 0)
}

// abandon releases in the background of a claim that failed.
func (cl *Claim) abandon() {
	ctx, cancel := context.WithTimeout(context.Background(), cl.c.opts.LeaseTTL)
	defer cancel()
	if err := cl.Release(ctx); err != nil {
		cl.c.opts.Logger.Warn("a lease could not be given back and has to expire", "job", cl.key, "error", err)
	}
}

// linger is how long work that can't be interrupted may take to end by itself before it is cut off: a cancelled flatten
// takes about a second.
const linger = 5 * time.Second

// disconnect ends the claim's connection. Work that hangs in a call is ended by blocklisting the connection's address:
// after that it can do no harm, whenever the call returns.
func (cl *Claim) disconnect(ctx context.Context) error {
	if cl.closed {
		return nil
	}
	wait, cancel := context.WithTimeout(ctx, linger)
	defer cancel()
	if cl.images.close(wait) == nil {
		cl.closed = true

		return nil
	}
	if err := onErr(ctx, cl.c, cl.cut); err != nil {
		return fmt.Errorf("end work that hangs: %w", err)
	}
	cl.closed = true
	go cl.images.closeLate()

	return nil
}

// cut fences the claim's own connection. One that is only being made can't be used any more, see Images.introduce.
func (cl *Claim) cut(k *control) error {
	addr := cl.images.address()
	if addr == "" {
		return nil
	}
	if err := cl.c.fence(k, addr); err != nil {
		return err
	}

	return k.conn.WaitForLatestOSDMap()
}

// leave takes our address out of the record, unless it is a successor's by now.
func (cl *Claim) leave(k *control) error {
	if cl.record.Epoch == 0 {
		return nil // the epoch was not raised, or nobody knows
	}
	epoch := cl.record.Epoch
	err := k.update(cl.key, epoch, map[string][]byte{keyAddr: nil})
	if errors.Is(err, errEpoch) {
		return nil
	}

	return err
}

// unlock takes the locks of this claim away, by the names that it took them under: the connection may be another by now.
// unlock gives back the leases but for the first ones, which the job's own is.
func (cl *Claim) unlock(k *control, keep int) error {
	for len(cl.held) > keep {
		object := cl.held[len(cl.held)-1]
		if _, err := k.io.BreakLock(object, lockName, cl.k.name, cl.cookie); err != nil && !is(err, enoent) {
			return fmt.Errorf("unlock %s: %w", object, err)
		}
		cl.held = cl.held[:len(cl.held)-1]
		if object != jobPrefix+cl.key {
			k.sweep(object)
		}
	}

	return nil
}

// sweep removes the volume's lock object if nobody has taken the lock since. It is only tidiness: errors do not matter. It
// looks again when somebody has written it in between, such as a release of before that comes late.
func (k *control) sweep(object string) {
	own, err := k.versioned()
	if err != nil {
		return
	}
	defer own.Destroy()
	for range 3 {
		if !is(removeUnlocked(own, object), erange, eoverflow) {
			return
		}
	}
}
