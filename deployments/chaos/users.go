package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cinderlift/cinderlift/internal/lab"
)

// users ask for images of volumes, one at a time for each volume, look at what they get, and delete it.
type users struct {
	lab     *lab.Lab
	demo    *lab.Cloud // who owns volumes and images
	admin   *lab.Cloud
	look    *lab.Inspector
	wire    *wire
	ledger  *ledger
	seed    uint64
	say     func(string, ...any)
	volumes []string
	digests map[string]string // by volume

	most     int64           // requests in all
	asked    atomic.Int64    // so far
	manager  atomic.Bool     // cinder-volume stands between the API and the queue
	gate     sync.RWMutex    // held to ask; taken to keep everybody from asking
	deadline context.Context // until when ends are waited for
}

// request is what one user wants.
type request struct {
	name   string
	volume string
	raw    bool
	bus    bool          // straight onto the queue, as cinder-api's glue puts it there
	cancel time.Duration // after which the user deletes the image; 0: never
	copies int           // of the message
	keep   bool          // do not delete the image at the end
}

// serve is the life of one volume until ctx ends or enough was asked for.
func (u *users) serve(ctx context.Context, phase, n int) {
	dice := rand.New(rand.NewPCG(u.seed, uint64(1000*phase+100+n)))
	for round := 0; ctx.Err() == nil; round++ {
		if u.asked.Add(1) > u.most {
			return
		}
		r := u.want(dice, n, fmt.Sprintf("chaos-%d-%d-%d-%d", u.seed, phase, n, round))
		err := u.one(ctx, r, dice)
		if errors.As(err, &errNotAccepted{}) {
			u.asked.Add(-1)
			pause(ctx, time.Second)
		} else if err != nil {
			u.say("%s: %v", r.name, err)
		}
		if u.deadline.Err() != nil {
			return
		}
	}
}

func (u *users) want(dice *rand.Rand, n int, name string) request {
	r := request{name: name, volume: u.volumes[n], raw: dice.IntN(100) > 0,
		bus: dice.IntN(100) < 60, keep: dice.IntN(100) < 3}
	if dice.IntN(100) < 8 {
		r.cancel = time.Millisecond + time.Duration(dice.Int64N(int64(4*time.Second)))
	}
	if dice.IntN(100) < 20 {
		r.copies = 1 + dice.IntN(3)
	}
	if !r.raw {
		r.bus, r.cancel = false, 0
	}

	return r
}

// one is a request from its beginning to its end.
func (u *users) one(ctx context.Context, r request, dice *rand.Rand) error {
	j, err := u.submit(ctx, r)
	if err != nil {
		return u.doubt(r, err)
	}

	return u.follow(u.deadline, r, j, dice) //nolint:contextcheck // it outlives the asking
}

// follow waits for the end of a request, longer than new ones are asked for.
func (u *users) follow(ctx context.Context, r request, j *job, dice *rand.Rand) error {
	if r.cancel > 0 {
		pause(ctx, r.cancel)
		u.cancel(ctx, j)
	}
	select {
	case <-j.ended:
	case <-ctx.Done():
		return fmt.Errorf("image %s of volume %s has not come to an end", j.Image, j.Volume)
	}
	if err := u.free(ctx, r.volume); err != nil {
		return err
	}
	u.late(ctx, r, j, dice)

	return u.take(ctx, r, j)
}

// submit asks for the image; only an answer that says yes counts.
func (u *users) submit(ctx context.Context, r request) (*job, error) {
	u.gate.RLock()
	defer u.gate.RUnlock()
	if ctx.Err() != nil {
		return nil, ctx.Err()
	}
	a := lab.Asked{Volume: r.volume, Name: r.name, Digest: u.digests[r.volume]}
	spec := lab.Raw(r.name)
	if !r.raw {
		a.Digest, spec.DiskFormat = "", "vmdk"
	}
	within, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*time.Minute)
	defer cancel()
	if r.bus {
		return u.byBus(within, r, a)
	}
	id, err := u.demo.Upload(within, r.volume, spec)
	if err != nil {
		return nil, err
	}
	a.Image = id

	return u.ledger.ask(a, "api"), nil
}

// byBus does what cinder-api does: an image without data, the volume `uploading`, and then the message.
func (u *users) byBus(ctx context.Context, r request, a lab.Asked) (*job, error) {
	id, err := u.demo.CreateImage(ctx, r.name)
	if err != nil {
		return nil, err
	}
	a.Image = id
	if err := u.reset(ctx, r.volume, "uploading"); err != nil {
		return nil, err
	}
	frame, err := u.wire.frame(a, u.demo.Project())
	if err != nil {
		return nil, err
	}
	// Until the broker has confirmed it, as oslo.messaging does; so it may arrive more than once.
	for err = u.wire.send(ctx, frame); err != nil; err = u.wire.send(ctx, frame) {
		if ctx.Err() != nil {
			return nil, err
		}
		pause(ctx, 300*time.Millisecond)
	}
	j := u.ledger.ask(a, "bus")
	for range r.copies {
		if u.wire.send(ctx, frame) == nil {
			u.ledger.count("duplicates", 1)
		}
	}

	return j, nil
}

func (u *users) reset(ctx context.Context, volume, status string) error {
	return u.admin.Act(ctx, volume, map[string]any{"os-reset_status": map[string]string{"status": status}})
}

// doubt is for a request that was not accepted, as far as its user knows. Cinder may have begun it all the same, and left
// the volume in `uploading`. If a worker has it, it has to end like any other; if nobody has, the user clears up.
func (u *users) doubt(r request, why error) error {
	u.ledger.count("not_accepted", 1)
	pause(u.deadline, 5*time.Second)
	image, err := u.named(r.name)
	if err != nil {
		return errors.Join(why, err)
	}
	if image != "" {
		found, err := u.look.Records([]string{image})
		if err != nil {
			return errors.Join(why, err)
		}
		if _, taken := found[image]; taken {
			a := lab.Asked{Image: image, Volume: r.volume, Name: r.name, Digest: u.digests[r.volume]}
			j := u.ledger.ask(a, "doubt")
			select {
			case <-j.ended:
				return u.take(u.deadline, r, j)
			case <-u.deadline.Done():
				return fmt.Errorf("image %s has not come to an end", image)
			}
		}
		_ = u.remove(u.deadline, image) // if it stays, the audit names it
	}
	if v, err := u.demo.Volume(u.deadline, r.volume); err == nil && v.Status == "uploading" {
		_ = u.reset(u.deadline, r.volume, "available")
	}

	return errNotAccepted{why}
}

// errNotAccepted is a request that Cinder or the broker did not take.
type errNotAccepted struct{ error }

// named finds the image of a request whose answer was lost.
func (u *users) named(name string) (string, error) {
	ids, err := u.look.Named(name)
	if err != nil || len(ids) == 0 {
		return "", err
	}

	return ids[0], nil
}

// cancel deletes the image while the job runs, or just has run.
func (u *users) cancel(ctx context.Context, j *job) {
	if u.remove(ctx, j.Image) == nil {
		u.ledger.change(j, func(a *lab.Asked) { a.Cancelled = true })
		u.ledger.count("deleted_by_users", 1)
	}
}

// free waits until Cinder has been told.
func (u *users) free(ctx context.Context, volume string) error {
	return lab.Wait(ctx, "volume "+volume+" to be free", func() (bool, error) {
		v, err := u.demo.Volume(ctx, volume)
		if err != nil || v.Status == "uploading" {
			pause(ctx, 400*time.Millisecond)
		}

		return err == nil && v.Status != "uploading", nil
	})
}

// late sends a message once more when all is over.
func (u *users) late(ctx context.Context, r request, j *job, dice *rand.Rand) {
	if !r.bus || r.copies == 0 || dice.IntN(2) == 0 {
		return
	}
	frame, err := u.wire.frame(j.Asked, u.demo.Project())
	if err == nil && u.wire.send(ctx, frame) == nil {
		u.ledger.count("duplicates", 1)
	}
}

// take looks at the image and deletes it, so that the cluster does not fill.
func (u *users) take(ctx context.Context, r request, j *job) error {
	found, err := u.look.Verify(j.Asked)
	for try := 0; err != nil && try < 30; try++ {
		pause(ctx, time.Second) // a service is away
		found, err = u.look.Verify(j.Asked)
	}
	if err != nil {
		return fmt.Errorf("look at image %s: %w", j.Image, err)
	}
	u.ledger.violate(found...)
	for _, v := range found {
		u.say("VIOLATION %s", v)
	}
	whole := slices.Contains([]string{"done", "declined", byStock}, j.record.Result)
	if len(found) > 0 || r.keep || j.Cancelled || !whole {
		return nil
	}
	// Booked before: a delete whose answer is lost may have been carried out.
	i, err := u.demo.Image(ctx, j.Image)
	if err != nil || i.Status != "active" {
		return err // the audit says what is wrong with it
	}
	u.ledger.count("verified", 1)
	j.going = true
	if err := u.remove(ctx, j.Image); err != nil {
		return fmt.Errorf("delete image %s: %w", j.Image, err)
	}
	u.ledger.change(j, func(a *lab.Asked) { a.Removed = true })

	return nil
}

// retry deletes what could not be deleted while Glance was away: a Glance that is killed in the middle of it leaves the
// image active without its snapshot. Everybody is at rest.
func (u *users) retry(ctx context.Context) {
	for _, image := range u.ledger.order {
		j := u.ledger.jobs[image]
		if j.going && !j.Removed && u.remove(ctx, image) == nil {
			u.ledger.change(j, func(a *lab.Asked) { a.Removed = true })
		}
	}
}

// remove deletes an image. Glance answers 409 and 500 while it is at work on it. One that is killed in the middle may leave a
// row with the status `deleted`, which it shows to everybody and refuses to delete again.
func (u *users) remove(ctx context.Context, image string) (err error) {
	for range 20 {
		if err = u.demo.DeleteImage(ctx, image); err == nil {
			return nil
		}
		if i, look := u.demo.Image(ctx, image); look == nil && (i.Status == "" || i.Status == "deleted") {
			return nil
		}
		pause(ctx, time.Second)
	}

	return err
}

// calmly does something while nobody asks. What RabbitMQ holds for cinder-volume is gone when it is restarted, since
// oslo.messaging's queues are not durable: so nothing may be on its way there that is not in the workers' journal.
func (u *users) calmly(ctx context.Context, f func() error) error {
	u.gate.Lock()
	defer u.gate.Unlock()
	if u.manager.Load() {
		within, cancel := context.WithTimeout(ctx, 30*time.Second)
		defer cancel()
		_ = lab.Wait(within, "requests to reach the journal", func() (bool, error) {
			waiting := u.ledger.waiting(0)
			found, err := u.look.Records(waiting)

			return len(found) == len(waiting), err
		})
	}

	return f()
}

// stock adds what cinder-volume did by itself, because the broker that had just been started again had no queue of the workers
// in that moment. No journal ever knows of that.
func (u *users) stock(ctx context.Context, found map[string]lab.Standing) {
	for _, image := range u.ledger.waiting(time.Minute) {
		if _, taken := found[image]; taken {
			continue
		}
		if i, err := u.admin.Image(ctx, image); err == nil && i.Status == "active" {
			found[image] = lab.Standing{Closed: true, Result: byStock}
		}
	}
}

// byStock is the result of a request that was served without us.
const byStock = "stock"

// watch books the ends of jobs until ctx ends.
func (u *users) watch(ctx context.Context) {
	for ctx.Err() == nil {
		if images := u.ledger.waiting(0); len(images) > 0 {
			found, err := u.look.Records(images)
			if err != nil {
				u.say("look at the journal: %v", err)
			}
			if err == nil {
				u.stock(ctx, found)
			}
			u.ledger.end(found)
		}
		pause(ctx, 500*time.Millisecond)
	}
}
