package ceph

import (
	"context"
	"encoding/json"
	"fmt"
	"regexp"
	"strings"
	"sync"
	"time"

	"github.com/ceph/go-ceph/rados"

	"github.com/cinderlift/cinderlift/worker"
)

// fenceTime is how long an address stays on the blocklist, in seconds: a day. When the entry is gone, a process that slept
// since before (a suspended machine) sends again what it had sent last. Ceph's own hour is too short for that; an entry
// costs a line in the OSD map, and goes away by itself.
const fenceTime = "86400.0"

// clientAddr matches one address of a client: port 0 and a nonce. Daemons have a port, so an entry of a journal that
// somebody tampered with can't make us blocklist one.
var clientAddr = regexp.MustCompile(`^(?:(?:v1|v2|any):)?(?:\[[0-9a-fA-F:.]+\]|[0-9.]+):0/[0-9]+$`)

// fenceable lists the addresses in what rados_getaddrs answered ("10.0.0.1:0/123" or "[v2:…,v1:…]"), or an error when it
// is not what a client has.
func fenceable(addrs string) ([]string, error) {
	list := strings.Split(strings.TrimSuffix(strings.TrimPrefix(addrs, "[v"), "]"), ",")
	if strings.HasPrefix(addrs, "[v") {
		list[0] = "v" + list[0]
	} else {
		list = []string{addrs}
	}
	for _, addr := range list {
		if !clientAddr.MatchString(addr) {
			return nil, fmt.Errorf("%q is not the address of a client", addr)
		}
	}

	return list, nil
}

// fencing is what a cluster remembers of owners that it may not blocklist.
type fencing struct {
	mu     sync.Mutex
	absent map[string]time.Time // by address: since when their lease is seen free
	warned bool                 // the log says already that we may not
}

// fence makes sure that the connection with this address does nothing more. It answers ErrHeld while that can't be said
// yet.
func (c *Cluster) fence(k *control, addrs string) error {
	list, err := fenceable(addrs)
	if err != nil {
		return refuse("fence "+addrs, worker.ReasonInternal, worker.GiveUp, "look into the journal: %w", err)
	}
	for _, addr := range list {
		err := c.blocklist(k, addr)
		if is(err, eperm, eacces) {
			return c.outwait(addrs, err)
		}
		if err != nil {
			return fmt.Errorf("blocklist %s: %w", addr, err)
		}
	}

	return nil
}

// blocklist is bounded by our own clock: rados_mon_op_timeout ends nothing when the threads that run librados's timers are
// stuck, as they were until closeImage came back from every open first (nobody adopted that job any more). Sending the
// command again is harmless. It takes only a float for expire: 16.2 answers EINVAL to an integer.
func (c *Cluster) blocklist(k *control, addr string) error {
	command, err := json.Marshal(map[string]any{
		"prefix": "osd blocklist", "blocklistop": "add", "addr": addr, "expire": json.RawMessage(fenceTime),
	})
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeoutCause(context.Background(), c.opts.Timeout,
		refuse("blocklist "+addr, worker.ReasonCephUnavailable, worker.Retry, "the monitors did not answer within %s", c.opts.Timeout))
	defer cancel()

	return throughErr(ctx, &k.users, func() error {
		_, _, err := k.conn.MonCommand(command)

		return err
	})
}

// outwait is for keys that may not blocklist: OSDs drop what a silent client holds after a while, and an owner that
// lost its lease stops by itself. Claims are refused until that time is over. Waiting inside a claim would use up the
// lease that the claim has just taken.
func (c *Cluster) outwait(addr string, why error) error {
	f := &c.fencing
	f.mu.Lock()
	defer f.mu.Unlock()
	since, known := f.absent[addr]
	if !known {
		if !f.warned {
			f.warned = true
			c.opts.Logger.Warn("can't fence workers that disappeared, their jobs have to wait",
				"wait", c.opts.FenceWait, "error", why, "advice", `give the key the cap mon "profile rbd"`)
		}
		since = time.Now()
		f.absent[addr] = since
	}
	if time.Since(since) < c.opts.FenceWait {
		return fmt.Errorf("the owner %s can't be fenced and may still be at work: %w", addr, worker.ErrHeld)
	}
	delete(f.absent, addr)

	return nil
}

// barrier makes every later operation of conn carry an OSD map that has the blocklist: an OSD that does not know the map
// yet fetches it before it answers.
func barrier(ctx context.Context, conn *rados.Conn) error {
	return awaitErr(ctx, conn.WaitForLatestOSDMap)
}
