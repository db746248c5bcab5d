package glance

import (
	"context"
	"crypto/md5"  //nolint:gosec // Glance's checksum
	"crypto/sha1" //nolint:gosec // one of Glance's hashing_algorithm
	"crypto/sha256"
	"crypto/sha512"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"net/http"
	"slices"
	"strconv"
	"time"

	"github.com/cinderlift/cinderlift/internal/keystone"
	"github.com/cinderlift/cinderlift/worker"
)

// Upload sends body, of size bytes, as the image's data; see strategies.Images for the contract. It waits while an
// earlier upload of the image goes on, up to Options.Patience, and gives up an image that stays saving. An error of body
// is handed through, unless the image turns out to be gone. When ctx ends the outcome is open; call it again.
func (c *Client) Upload(ctx context.Context, imageID, store string, body io.ReadSeeker, size int64, p worker.Progress) error {
	u := &upload{
		client: c, id: imageID, store: store, body: body, size: size, progress: p,
		op: fmt.Sprintf("upload %d bytes to image %s", size, imageID),
	}

	return u.run(ctx)
}

// upload is one call of Upload.
type upload struct {
	client    *Client
	op        string
	id, store string
	body      io.ReadSeeker
	size      int64
	progress  worker.Progress

	sums  *sums // of the try under way; nil: none
	taken int64 // bytes of the try under way
	moved int64 // bytes of all tries
}

func (u *upload) run(ctx context.Context) error {
	defer u.forgetSums()
	if err := u.measure(); err != nil {
		return err
	}
	img, err := u.client.settled(ctx, u.id)
	switch {
	case err != nil:
		return err
	case img.complete():
		return u.verify(ctx, img)
	case img.Status != worker.ImageQueued || img.awaitsTask():
		return u.stuck(img)
	}
	a, sent := u.client.session.Do(ctx, u.request())
	if sent == nil && a.Err() == nil {
		u.client.gave(u.id)
	}
	img, err = u.client.settled(ctx, u.id)
	switch {
	case err != nil:
		return err
	case img.complete():
		return u.verify(ctx, img)
	case img.Status != worker.ImageQueued:
		return u.stuck(img)
	case sent != nil:
		return sent
	default:
		return u.failed(a)
	}
}

// measure makes sure that body is what the caller says, before Glance is told.
func (u *upload) measure() error {
	end, err := u.body.Seek(0, io.SeekEnd)
	if err != nil {
		return err
	}
	if end != u.size {
		return &worker.Error{Op: u.op, Reason: worker.ReasonMismatch, Err: fmt.Errorf("the source has %d bytes", end)}
	}

	return nil
}

func (u *upload) request() keystone.Request {
	h := http.Header{"Content-Type": {"application/octet-stream"}}
	// Glance 31.0.0 takes the size from here (glance c76abb08e api/v2/image_data.py:542-557), older ones from
	// Content-Length.
	h.Set("X-Openstack-Image-Size", strconv.FormatInt(u.size, 10))
	if u.store != "" {
		h.Set("X-Image-Meta-Store", u.store)
	}

	return keystone.Request{
		Service: keystone.Image, Op: "image-upload", What: u.op, Method: http.MethodPut,
		Path: "/v2/images/" + u.id + "/file", Header: h, Body: u.body, Size: u.size, Tee: u.tee,
		Fresh: lasting(u.size), Timeout: u.client.opts.Silence,
	}
}

// lasting is how long a token has to live for an upload, supposed that 50 MiB/s pass at least.
func lasting(size int64) time.Duration {
	return 10*time.Minute + time.Duration(size/(50<<20))*time.Second
}

// tee sees every byte that is sent.
func (u *upload) tee(p []byte, reset bool) {
	if reset {
		u.forgetSums()
		u.taken, u.sums = 0, newSums()
	}
	u.sums.write(p)
	u.taken += int64(len(p))
	u.moved += int64(len(p))
	if u.progress != nil && !reset {
		u.progress(worker.Amount{Done: u.taken, Total: u.size, Worker: u.moved})
	}
}

func (u *upload) forgetSums() {
	if u.sums != nil {
		u.sums.end()
		u.sums = nil
	}
}

// failed: the image is queued after the PUT.
func (u *upload) failed(a *keystone.Answer) error {
	switch a.Code {
	case http.StatusNotFound, http.StatusGone:
		// The image is there, so it is the store that Glance can't or may not write to.
		return &worker.Error{Op: u.op, Reason: worker.ReasonGlanceRefused,
			Err: fmt.Errorf("Glance's store %q takes no images: %w", u.store, a.Err())}
	case http.StatusRequestEntityTooLarge:
		return full(u.op, a)
	}
	if err := a.Err(); err != nil {
		return err
	}

	return &worker.Error{Op: u.op, Reason: worker.ReasonGlanceUnavailable, Advice: worker.Retry,
		Err: fmt.Errorf("Glance answered %d but shows the image queued", a.Code)}
}

// full: Glance answers 413 for a project's quota and for a store without space alike (glance c76abb08e
// api/v2/image_data.py:233-262), and nothing but the text tells them apart.
func full(op string, a *keystone.Answer) error {
	return &worker.Error{Op: op, Reason: worker.ReasonGlanceFull,
		Err: fmt.Errorf("%w; raise the project's quota in Glance, or make space in its store", a.Err())}
}

// stuck: Glance will not take an upload any more. An image that stays saving had an upload of ours, or of the worker before,
// whose Glance died with it; it is no image of somebody else's, and will be discarded as stock Cinder does with it (cinder
// 21.3 volume/manager.py _delete_image).
func (u *upload) stuck(img image) error {
	e := &worker.Error{Op: u.op, Reason: worker.ReasonImageState, Err: fmt.Errorf("it is %s", img.Status)}
	if img.busy() {
		e.Err = fmt.Errorf("it is %s for more than %s, and Glance takes no other upload; a part of it may be left in the store",
			img.Status, u.client.opts.Patience)
	}
	if img.Status == "saving" {
		e.Reason = worker.ReasonGlanceUnavailable
	}

	return e
}

// verify compares what Glance has with what the source has. It reads the source again when no try of this call did so to
// the end, as after an adoption. An image to which we gave other bytes is locked: whoever boots it trusts it to be the
// volume's copy. One that others may have given them is left as it is.
func (u *upload) verify(ctx context.Context, img image) error {
	if img.Size != u.size {
		return u.lock(ctx, img, u.mismatch("size", strconv.FormatInt(img.Size, 10), strconv.FormatInt(u.size, 10)))
	}
	if u.store != "" && len(img.stores()) > 0 && !slices.Contains(img.stores(), u.store) {
		return u.mismatch("store", img.StoreList, u.store)
	}
	algo, want := img.digest()
	if algo == "" {
		return &worker.Error{Op: u.op, Reason: worker.ReasonImageState,
			Err: errors.New("it is active without a checksum that could be compared, so its data was not uploaded")}
	}
	got, err := u.sum(algo)
	if err != nil {
		return err
	}
	if got != want {
		return u.lock(ctx, img, u.mismatch(algo, want, got))
	}
	if got, ok := u.sent("md5"); ok && img.Checksum != "" && got != img.Checksum { // not worth another reading of the source
		return u.lock(ctx, img, u.mismatch("md5", img.Checksum, got))
	}
	u.client.forget(u.id)

	return nil
}

func (u *upload) mismatch(what, theirs, ours string) *worker.Error {
	return &worker.Error{Op: u.op, Reason: worker.ReasonMismatch,
		Err: fmt.Errorf("the image is active with %s %s, the source has %s; delete the image and start again", what, theirs, ours)}
}

// lock deactivates an image with wrong data: it keeps its data and all else, nobody can download it or make a volume of
// it, and an operator can reactivate it (glance c76abb08e api/v2/image_actions.py). That needs the image to be active, and
// deactivating twice is no error. The answer is why, once Glance shows that the lock is there; when its answer was lost,
// or it is away, the caller comes again and finds out by looking.
func (u *upload) lock(ctx context.Context, img image, why *worker.Error) error {
	if !u.client.hasGiven(u.id) {
		return why
	}
	if img.Status != worker.ImageActive {
		why.Err = fmt.Errorf("%w; it is %s, so that nobody uses it", why.Err, img.Status)

		return why
	}
	what := "deactivate image " + u.id + ", whose data is wrong"
	a, sent := u.client.session.Do(ctx, keystone.Request{
		Service: keystone.Image, Op: "image-deactivate", What: what, Method: http.MethodPost,
		Path: "/v2/images/" + u.id + "/actions/deactivate",
	})
	img, err := u.client.look(ctx, u.id)
	switch {
	case err != nil:
		return err
	case img.Status != worker.ImageActive:
		return u.lock(ctx, img, why)
	case sent != nil:
		return sent
	case worker.AdviceOf(a.Err()) == worker.Retry:
		return a.Err()
	case a.Err() != nil:
		why.Err = fmt.Errorf("%w; it could not be deactivated, so do that: %w", why.Err, a.Err())

		return why
	default:
		return &worker.Error{Op: what, Reason: worker.ReasonGlanceUnavailable, Advice: worker.Retry,
			Err: fmt.Errorf("Glance answered %d but shows the image active", a.Code)}
	}
}

// gave remembers that Glance has said that it took data of ours, so what the image has is ours. It is remembered for as long
// as the client lives, a few bytes for each upload: the lock may need several calls.
func (c *Client) gave(id string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.given == nil {
		c.given = map[string]bool{}
	}
	c.given[id] = true
}

func (c *Client) hasGiven(id string) bool {
	c.mu.Lock()
	defer c.mu.Unlock()

	return c.given[id]
}

// forget is for an image whose bytes are right: it will never have to be locked.
func (c *Client) forget(id string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.given, id)
}

// digest picks what to compare.
func (i image) digest() (algo, value string) {
	switch {
	case i.HashValue != "" && newHash(i.HashAlgo) != nil:
		return i.HashAlgo, i.HashValue
	case i.Checksum != "":
		return "md5", i.Checksum
	default:
		return "", ""
	}
}

// sum is the digest of the whole source, from the try that sent it all or from reading it.
func (u *upload) sum(algo string) (string, error) {
	if digest, ok := u.sent(algo); ok {
		return digest, nil
	}
	if _, err := u.body.Seek(0, io.SeekStart); err != nil {
		return "", err
	}
	s := newHash(algo)
	if _, err := io.Copy(s, u.body); err != nil {
		return "", err
	}

	return hex.EncodeToString(s.Sum(nil)), nil
}

// sent is the digest of what the try under way has sent, if that was all.
func (u *upload) sent(algo string) (digest string, ok bool) {
	if u.sums == nil || u.taken != u.size {
		return "", false
	}

	return u.sums.of(algo)
}

// newHash knows Glance's hashing_algorithm by name; nil for others.
func newHash(algo string) hash.Hash {
	switch algo {
	case "sha512":
		return sha512.New()
	case "sha384":
		return sha512.New384()
	case "sha256":
		return sha256.New()
	case "sha1":
		return sha1.New() //nolint:gosec // theirs
	case "md5":
		return md5.New() //nolint:gosec // theirs
	default:
		return nil
	}
}
