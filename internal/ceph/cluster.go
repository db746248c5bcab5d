package ceph

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"maps"
	"sync"
	"time"

	"github.com/ceph/go-ceph/rados"

	"github.com/cinderlift/cinderlift/worker"
)

// Options says how to reach a cluster. The zero value reaches the cluster of the default configuration file.
type Options struct {
	ConfFile string // "": where librados looks by itself
	Name     string // of the cluster; "": ceph
	User     string // without "client."; "": cinderlift

	JournalPool string // replicated pool of journal and leases; "": images
	Namespace   string // RADOS namespace in it; "": cinderlift

	Owner    string        // this worker's name in the journal; has to differ from all others'
	LeaseTTL time.Duration // 0: 30 s; the same for all workers

	// Timeout bounds operations of the control connection and every connect; 0: 10 s. Well below LeaseTTL.
	Timeout time.Duration

	// FenceWait is how long an owner that disappeared is waited for when our key may not blocklist it; 0: 40 s, which
	// is more than the OSDs wait for a client that does not answer (osd_client_watch_timeout, 30 s).
	FenceWait time.Duration

	// Connections is how many claims have a connection of their own at a time; 0: 24. More wait for their turn without a
	// lease. One that was parked and connects again does not count, so it is this many and those that move data at most.
	Connections int

	// DataConf sets options of Ceph on the connections that do the work, such as rbd_concurrent_management_ops.
	DataConf map[string]string

	Limits Limits // at the beginning; see Cluster.Limit

	// Engine, if set, is told by which engine the data of an image comes, and why not by the best one; see Engines. It
	// may be called concurrently.
	Engine func(engine, why string)

	Logger *slog.Logger // nil: slog.Default()
}

func (o Options) withDefaults() Options {
	o.Name = cmp.Or(o.Name, "ceph")
	o.User = cmp.Or(o.User, "cinderlift")
	o.JournalPool = cmp.Or(o.JournalPool, "images")
	o.Namespace = cmp.Or(o.Namespace, "cinderlift")
	o.LeaseTTL = cmp.Or(o.LeaseTTL, 30*time.Second)
	o.Timeout = cmp.Or(o.Timeout, 10*time.Second)
	o.FenceWait = cmp.Or(o.FenceWait, 40*time.Second)
	o.Connections = cmp.Or(o.Connections, 24)
	if o.Engine == nil {
		o.Engine = func(string, string) {}
	}
	o.Logger = cmp.Or(o.Logger, slog.Default())

	return o
}

// Cluster is a Ceph cluster with cinderlift's journal in it. Its methods may be called concurrently. It implements
// worker.Journal.
type Cluster struct {
	opts   Options
	limits *limits
	places places

	mu      sync.Mutex
	control *control // nil: it was fenced, the next user makes another
	dialed  time.Time
	closed  bool
	retired sync.WaitGroup // connections that are closed when their users have left

	fencing fencing
}

var _ worker.Journal = (*Cluster)(nil)

// Open connects to the cluster. Errors are *worker.Error and say what to look at.
func Open(ctx context.Context, o Options) (*Cluster, error) {
	c := &Cluster{opts: o.withDefaults(), limits: newLimits(o.Limits), fencing: fencing{absent: map[string]time.Time{}}}
	c.places = make(places, c.opts.Connections)
	opened, err := await(ctx, c.open, func(c *Cluster) { _ = c.Close() })
	if err != nil {
		return nil, classify("open Ceph as client."+c.opts.User, err)
	}

	return opened, nil
}

func (c *Cluster) open() (*Cluster, error) {
	k, err := c.enter()
	if err != nil {
		return nil, err
	}
	k.users.leave()

	return c, nil
}

// lean keeps small what a connection costs, since a worker has one for each job: 1.3 MiB instead of 2.0 on 16.2.15. One thread
// sends and receives, which is enough where no data goes through us, and for an upload; librados keeps fewer messages in memory
// for the log of a crash.
func lean() map[string]string {
	return map[string]string{"ms_async_op_threads": "1", "log_max_recent": "10"}
}

// connect makes a connection with some options of Ceph set.
func (c *Cluster) connect(conf map[string]string) (*rados.Conn, error) {
	conn, err := rados.NewConnWithClusterAndUser(c.opts.Name, "client."+c.opts.User)
	if err != nil {
		return nil, fmt.Errorf("make a connection: %w", err)
	}
	if c.opts.ConfFile == "" {
		err = conn.ReadDefaultConfigFile()
	} else {
		err = conn.ReadConfigFile(c.opts.ConfFile)
	}
	if err != nil {
		return nil, fmt.Errorf("read the configuration %s: %w", cmp.Or(c.opts.ConfFile, "(default)"), err)
	}
	all := lean()
	maps.Copy(all, conf)
	for key, value := range all {
		if err := conn.SetConfigOption(key, value); err != nil {
			return nil, fmt.Errorf("set %s=%s: %w", key, value, err)
		}
	}
	if err := conn.Connect(); err != nil {
		return nil, fmt.Errorf("connect: %w", err)
	}

	return conn, nil
}

// ioctx opens a pool. Without the full-try flag an operation on a full pool hangs until there is room, without an error
// (tried on 16.2.15: copy, flatten, clone and snap create alike).
func ioctx(conn *rados.Conn, pool string) (*rados.IOContext, error) {
	io, err := conn.OpenIOContext(pool)
	if is(err, enoent) {
		return nil, refuse("open pool "+pool, worker.ReasonCephRefused, worker.OtherWay, "the pool is not there: %w", err)
	}
	if err != nil {
		return nil, fmt.Errorf("open pool %s: %w", pool, err)
	}
	if err := io.SetPoolFullTry(); err != nil {
		io.Destroy()

		return nil, fmt.Errorf("set full-try on pool %s: %w", pool, err)
	}

	return io, nil
}

// FSID is the cluster's id.
func (c *Cluster) FSID(ctx context.Context) (string, error) {
	id, err := on(ctx, c, func(k *control) (string, error) { return k.conn.GetFSID() }, nil)

	return id, classify("ask for the fsid", err)
}

// Ping asks the OSD that has the journal's index; nil means that journal and leases work. It returns within
// Options.Timeout.
func (c *Cluster) Ping(ctx context.Context) error {
	return classify("ping the journal", onErr(ctx, c, func(k *control) error {
		_, err := k.io.Stat(indexObject)
		if is(err, enoent) {
			return nil
		}

		return err
	}))
}

// Close ends the control connection. Claims have to be released before. It waits for calls that linger, for twice
// Options.Timeout at most: what has not ended then ends with the process. Idempotent.
func (c *Cluster) Close() error {
	c.mu.Lock()
	k := c.control
	c.control, c.closed = nil, true
	c.mu.Unlock()
	if k != nil {
		c.retire(k, worker.ErrStopping)
	}
	idle := make(chan struct{})
	go func() {
		c.retired.Wait()
		close(idle)
	}()
	timer := time.NewTimer(2 * c.opts.Timeout)
	defer timer.Stop()
	select {
	case <-idle:
		return nil
	case <-timer.C:
		return refuse("close the connection to Ceph", worker.ReasonCephUnavailable, worker.Retry, "calls into Ceph have not ended")
	}
}
