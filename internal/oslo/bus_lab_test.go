//go:build lab

package oslo

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"
)

// labSite runs the suite on the RabbitMQ of the lab.
type labSite struct {
	env    map[string]string
	suffix string // options of the transport URL
}

func openLab(t *testing.T, options string) *labSite {
	t.Helper()
	path := os.Getenv("CINDERLIFT_LAB_ENV")
	if path == "" {
		t.Fatal("CINDERLIFT_LAB_ENV names no lab.env: bring up the lab (deployments/lab/lab up bookworm ceph rabbit)")
	}
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	s := &labSite{env: map[string]string{}, suffix: options}
	for line := range strings.Lines(string(data)) {
		name, value, _ := strings.Cut(strings.TrimSpace(line), "=")
		s.env[name] = strings.Trim(value, `'"`)
	}
	return s
}

func (s *labSite) url() string { return s.env["LAB_TRANSPORT_URL"] + s.suffix }

func (s *labSite) options(t *testing.T) Options {
	t.Helper()
	tr, err := ParseTransportURL(s.url())
	if err != nil {
		t.Fatal(err)
	}
	id := "cinderlift-test-" + newID()[:12]
	t.Cleanup(func() {
		s.remove(t, id)
		s.remove(t, id+".dead")
		s.admin(t, func(ch *amqp.Channel) {
			for _, name := range []string{id + ".x", id + ".dead"} {
				if err := ch.ExchangeDelete(name, false, false); err != nil {
					t.Errorf("clean up: %v", err)
				}
			}
		})
	})
	return Options{Transport: tr, Exchange: id + ".x", Topic: id, Name: id}
}

func (s *labSite) admin(t *testing.T, f func(*amqp.Channel)) {
	t.Helper()
	tr, err := ParseTransportURL(s.url())
	if err != nil {
		t.Fatal(err)
	}
	c, err := dialAMQP(context.Background(), tr, tr.Hosts[0], "admin")
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close(time.Second)
	ch, err := c.(*amqpConnection).c.Channel()
	if err != nil {
		t.Fatal(err)
	}
	f(ch)
}

func (s *labSite) ready(t *testing.T, queue string) (n int) {
	t.Helper()
	s.admin(t, func(ch *amqp.Channel) {
		q, err := ch.QueueDeclarePassive(queue, false, false, false, false, nil)
		n = q.Messages
		if err != nil {
			n = -1
		}
	})
	return n
}

func (s *labSite) remove(t *testing.T, queue string) {
	t.Helper()
	s.admin(t, func(ch *amqp.Channel) {
		if _, err := ch.QueueDelete(queue, false, false, false); err != nil {
			t.Errorf("remove queue %s: %v", queue, err)
		}
	})
}

func (s *labSite) command(ctx context.Context, args ...string) *exec.Cmd {
	return exec.CommandContext(ctx, s.env["LAB_COMMAND"], args...)
}

func (s *labSite) rabbitmqctl(t *testing.T, args ...string) string {
	t.Helper()
	port, err := strconv.Atoi(s.env["LAB_AMQP_PORT"])
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	all := append([]string{"exec", s.env["LAB_GENERATION"], "env", "HOME=" + filepath.Join(s.env["LAB_DIR"], "rabbit", "home"),
		"RABBITMQ_NODENAME=lab@localhost", fmt.Sprint("ERL_EPMD_PORT=", port-1), "/usr/lib/rabbitmq/bin/rabbitmqctl", "-q"}, args...)
	out, err := s.command(ctx, all...).CombinedOutput()
	if err != nil {
		t.Fatalf("rabbitmqctl %v: %v\n%s", args, err, out)
	}
	return string(out)
}

// cut has the broker close our connections, and only ours.
func (s *labSite) cut(t *testing.T, o Options) {
	t.Helper()
	n := 0
	for line := range strings.Lines(s.rabbitmqctl(t, "list_connections", "pid", "client_properties")) {
		pid, properties, _ := strings.Cut(line, "\t")
		if strings.Contains(properties, o.Name) {
			s.rabbitmqctl(t, "close_connection", pid, "closed by a test")
			n++
		}
	}
	if n == 0 {
		t.Fatal("the broker knows no connection of ours")
	}
}

// configurations of oslo.messaging that are met in the field.
var configurations = map[string]string{
	"classic": "", "durable": "?amqp_durable_queues=true", "quorum": "?rabbit_quorum_queue=true",
}

func TestSuiteOnRabbitMQ(t *testing.T) {
	for kind, options := range configurations {
		for name, f := range suite() {
			t.Run(kind+"/"+name, func(t *testing.T) { f(t, openLab(t, options)) })
		}
	}
}

// The broker restarts: what is durable stays, a transient exchange is made and bound
// again, and waiting receivers go on.
func TestBrokerRestart(t *testing.T) {
	for kind, options := range configurations {
		t.Run(kind, func(t *testing.T) {
			s := openLab(t, options)
			d := openDesk(t, s, nil)
			d.cast("zero")
			held := d.receive()
			d.cast("one")
			d.backlog(1)
			ctx, cancel := context.WithTimeout(context.Background(), 3*time.Minute)
			defer cancel()
			if out, err := s.command(ctx, "restart", s.env["LAB_GENERATION"], "rabbit").CombinedOutput(); err != nil {
				t.Fatalf("restart: %v\n%s", err, out)
			}
			d.until("noticed", func() bool { return d.b.State().Consume.Generation > 1 })
			d.until("ready", func() bool { return d.b.State().Ready() })
			if err := held.Ack(); !errors.Is(err, ErrDeliveryGone) {
				t.Errorf("ack over the restart: %v", err)
			}
			d.cast("two")
			seen := map[string]bool{}
			for range 3 {
				got := d.receive()
				seen[got.Request.Method] = true
				if err := got.Ack(); err != nil {
					t.Error(err)
				}
			}
			if len(seen) != 3 {
				t.Errorf("received %v", seen)
			}
		})
	}
}

// A quorum queue gives up on a message by itself after its delivery limit: it is in the dead letters then, not lost, with
// everything that was in it. Looking at it takes the token away. Our own limit comes first unless it is switched off.
func TestDeliveryLimit(t *testing.T) {
	d := openDesk(t, openLab(t, ""), func(o *Options) { o.QueueType, o.DeliveryLimit, o.Poison = Quorum, 3, -1 })
	d.send(wrap(poisonBody))
	for i := range 4 {
		d.crash(d.receiveCount(i))
	}
	l := d.openDead()
	for range 3 {
		if got := d.listed(l, 1)[0]; got.Reason != "dead-lettered by the broker: delivery_limit" || got.RoutingKey != d.o.Topic ||
			got.Exchange != d.o.Exchange || time.Since(got.Time).Abs() > time.Hour || bytes.Contains(got.Body, []byte("tok-123")) {
			t.Errorf("listed %+v", got)
		}
	}
	if m := d.take(d.o.DeadLetter); bytes.Contains(m.Body, []byte("tok-123")) || !bytes.Contains(m.Body, []byte("volume_id")) {
		t.Errorf("dead letter %v: %s", m.Headers, m.Body)
	}
	d.backlog(0)
}

// A call whose time is up in the queue is put there by a quorum queue too.
func TestExpiredCall(t *testing.T) {
	d := openDesk(t, openLab(t, ""), func(o *Options) { o.QueueType = Quorum })
	m := Message{Body: []byte(wrap(poisonBody)), properties: properties{JSONContentType, "utf-8", "100"}}
	if err := d.b.Publish(d.ctx(), d.o.Exchange, d.o.Topic, m, true); err != nil {
		t.Fatal(err)
	}
	l := d.openDead()
	if got := d.listed(l, 1)[0]; got.Reason != "dead-lettered by the broker: expired" || bytes.Contains(got.Body, []byte("tok-123")) {
		t.Errorf("listed %+v", got)
	}
	if _, err := l.Drop(d.ctx(), everything); err != nil {
		t.Fatal(err)
	}
}

// A memory alarm: State says so within seconds though nobody publishes, publishing fails typed and in time, taking and
// settling go on, and all resumes by itself on the same connection.
func TestAlarm(t *testing.T) {
	s := openLab(t, "")
	d := openDesk(t, s, func(o *Options) { o.Probe = 200 * time.Millisecond })
	for _, name := range []string{"one", "two", "three"} {
		d.cast(name)
	}
	before := d.b.State().Publish.Generation
	over := func() { s.rabbitmqctl(t, "set_vm_memory_high_watermark", "0.4") }
	t.Cleanup(over)
	s.rabbitmqctl(t, "set_vm_memory_high_watermark", "0.00001")
	start := time.Now()
	d.until("blocked", func() bool { st := d.b.State(); return !st.Ready() && st.Publish.Blocked != "" && st.Publish.Connected })
	t.Logf("known after %v: %s", time.Since(start), d.b.State().Publish.Blocked)
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	if err := d.b.Cast(ctx, d.o.Exchange, d.o.Topic, Cast{Method: "four"}); !errors.Is(err, ErrDisconnected) || errors.Is(err, ErrNotConfirmed) {
		t.Errorf("error = %v", err)
	}
	if got := d.receive(); got.Request.Method != "one" || got.Ack() != nil {
		t.Errorf("received %+v", got.Request)
	}
	if err := d.receive().Requeue(); err != nil {
		t.Errorf("give back: %v", err)
	}
	waiting := make(chan error, 1)
	go func() {
		waiting <- d.b.Cast(d.ctx(), d.o.Exchange, d.o.Topic, Cast{Method: "five"})
	}()
	over()
	start = time.Now()
	if err := <-waiting; err != nil {
		t.Errorf("a message that waited: %v", err)
	}
	d.until("ready", func() bool { return d.b.State().Ready() })
	t.Logf("ready again after %v", time.Since(start))
	if now := d.b.State().Publish.Generation; now != before {
		t.Errorf("connection %d has become %d", before, now)
	}
	seen := map[string]bool{}
	for range 3 {
		got := d.receive()
		seen[got.Request.Method] = true
		if err := got.Ack(); err != nil {
			t.Error(err)
		}
	}
	if !seen["two"] || !seen["three"] || !seen["five"] {
		t.Errorf("received %v", seen)
	}
	d.backlog(0)
}

func TestDialFails(t *testing.T) {
	s := openLab(t, "")
	tr, err := ParseTransportURL(s.url())
	if err != nil {
		t.Fatal(err)
	}
	for name, change := range map[string]func(*Transport, *Host){
		"password":     func(_ *Transport, h *Host) { h.Password = NewSecret("wrong-password") },
		"vhost":        func(t *Transport, _ *Host) { t.VHost = "none" },
		"nobody there": func(_ *Transport, h *Host) { h.Port = 1 },
		"TLS":          func(t *Transport, _ *Host) { t.TLS.Enabled = true },
	} {
		u, h := tr, tr.Hosts[0]
		change(&u, &h)
		started := time.Now()
		c, err := dialAMQP(context.Background(), u, h, "test")
		if err == nil {
			c.Close(time.Second)
			t.Errorf("%s: no error", name)
			continue
		}
		if strings.Contains(err.Error(), h.Password.Reveal()) || time.Since(started) > 2*dialTimeout {
			t.Errorf("%s: after %v: %v", name, time.Since(started), err)
		}
	}
	for _, method := range []string{"PLAIN", "AMQPLAIN"} {
		u := tr
		u.LoginMethod = method
		c, err := dialAMQP(context.Background(), u, u.Hosts[0], "test")
		if err != nil {
			t.Errorf("%s: %v", method, err)
			continue
		}
		c.Close(time.Second)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if _, err := dialAMQP(ctx, tr, tr.Hosts[0], "test"); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
}

// peer is testdata/peer.py: a real oslo.messaging as client, server and listener.
type peer struct {
	started chan struct{}
	done    chan struct{}
	out     []byte
	err     error
}

func startPeer(t *testing.T, s *labSite, o Options) *peer {
	t.Helper()
	script, err := os.ReadFile("testdata/peer.py")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Minute)
	cmd := s.command(ctx, "exec", s.env["LAB_GENERATION"], "python3", "-", s.url(), o.Exchange, o.Topic)
	cmd.Stdin = bytes.NewReader(script)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	p := &peer{started: make(chan struct{}), done: make(chan struct{})}
	go func() {
		defer close(p.done)
		defer cancel()
		lines := bufio.NewScanner(stdout)
		lines.Buffer(nil, 1<<20)
		for lines.Scan() {
			if lines.Text() == "started" {
				close(p.started)
				continue
			}
			p.out = bytes.Clone(lines.Bytes())
		}
		if p.err = cmd.Wait(); p.err != nil {
			p.err = fmt.Errorf("%w: %s", p.err, stderr.String())
		}
	}()
	t.Cleanup(func() { <-p.done })
	return p
}

func (p *peer) wait(t *testing.T, c <-chan struct{}) {
	t.Helper()
	select {
	case <-c:
	case <-p.done:
		if p.err != nil {
			t.Fatalf("peer: %v", p.err)
		}
	}
}

// worker answers the peer.
type worker struct {
	b     *Bus
	o     Options
	mu    sync.Mutex
	notes []string
}

func (w *worker) loop(ctx context.Context, t *testing.T) {
	target := Target{Version: "1.5", Methods: []string{"echo", "nothing", "fail", "boom", "slow", "silent", "note", "report"}}
	for {
		d, err := w.b.Receive(ctx)
		if err != nil {
			return
		}
		if d.DecodeError != nil {
			t.Errorf("undecodable: %v", d.DecodeError)
		}
		if err := d.Ack(); err != nil {
			t.Errorf("ack: %v", err)
		}
		reply := Reply{Failure: target.Refuse(d.Request)}
		if reply.Failure == nil {
			reply = w.serve(ctx, t, d.Request)
		}
		if err := w.b.Reply(ctx, d.Request, reply); err != nil && d.Request.Method != "silent" {
			t.Errorf("reply to %s: %v", d.Request.Method, err)
		}
	}
}

func (w *worker) serve(ctx context.Context, t *testing.T, r Request) Reply {
	if token := r.Context.AuthToken().Reveal(); token != "live-token" || r.Context.RequestID() == "" {
		t.Errorf("%s: context %v, token of %d bytes", r.Method, r.Context, len(token))
	}
	switch r.Method {
	case "echo":
		return Reply{Result: r.Args["value"]}
	case "fail":
		return Reply{Failure: CinderException("ImageNotFound", "Image image-1 could not be found.", map[string]any{"image_id": r.Args["image_id"]})}
	case "boom":
		return Reply{Failure: RemoteFailure("OutOfCheese", "redo from start")}
	case "slow":
		stop := w.b.Heartbeats(ctx, r)
		defer stop()
		<-time.After(5 * time.Second)
		return Reply{Result: "done"}
	case "silent":
		<-time.After(4 * time.Second)
	case "note":
		w.mu.Lock()
		w.notes = append(w.notes, string(r.Args["n"]))
		w.mu.Unlock()
	case "report":
		w.report(ctx, t, r)
	}
	return Reply{}
}

func (w *worker) report(ctx context.Context, t *testing.T, r Request) {
	err := w.b.Cast(ctx, w.o.Exchange, w.o.Topic+"-py.peer", Cast{
		Method: "image_upload_done", Version: "3.0", Args: map[string]any{"image_id": "i", "note": "Grüße ☃"}, Context: r.Context})
	if err != nil {
		t.Errorf("cast to the peer: %v", err)
	}
	err = w.b.Notify(ctx, w.o.Topic+"-notifications", Notification{
		MessageID: "51fd2ec1-830b-423c-9ef6-07d0a915bd52", PublisherID: "cinderlift.h", EventType: "image.upload.end",
		Payload: map[string]any{"name": "Grüße ☃"}, Timestamp: time.Now(), Context: r.Context})
	if err != nil {
		t.Errorf("notify the peer: %v", err)
	}
}

// answer is what the peer saw of one call or cast.
type answer struct {
	Result  any
	Type    string
	Str     string
	Bases   []string
	ExcType string `json:"exc_type"`
	Value   string
	Took    float64
}

func TestWithOslo(t *testing.T) {
	for kind, options := range configurations {
		for _, first := range []string{"oslo first", "bus first"} {
			t.Run(kind+"/"+first, func(t *testing.T) { talkToOslo(t, openLab(t, options), first == "oslo first") })
		}
	}
}

func talkToOslo(t *testing.T, s *labSite, peerFirst bool) {
	o := s.options(t).withDefaults()
	t.Cleanup(func() { // what the peer leaves
		for _, name := range []string{"-py", "-py.peer", "-notifications.info"} {
			s.remove(t, o.Topic+name)
		}
	})
	var p *peer
	if peerFirst {
		p = startPeer(t, s, o)
		p.wait(t, p.started)
	}
	d := openDesk(t, s, func(q *Options) {
		q.Exchange, q.Topic, q.DeadLetter, q.Name = o.Exchange, o.Topic, o.DeadLetter, o.Name
	})
	w := &worker{b: d.b, o: o}
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	for range 2 {
		wg.Go(func() { w.loop(ctx, t) })
	}
	defer wg.Wait()
	defer cancel()
	if !peerFirst {
		p = startPeer(t, s, o)
	}
	p.wait(t, p.done)
	if p.err != nil {
		t.Fatalf("peer: %v", p.err)
	}
	judge(t, w, p.out)
}

func judge(t *testing.T, w *worker, out []byte) {
	var members map[string]json.RawMessage
	if err := json.Unmarshal(out, &members); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	got := map[string]answer{}
	for name, m := range members {
		var a answer
		if name != "done" && name != "event" && json.Unmarshal(m, &a) == nil {
			got[name] = a
		}
	}
	for name, want := range map[string]answer{
		"cast at least once": {}, "cast": {}, "none": {}, "report": {},
		"call":                {Result: map[string]any{"name": "Grüße ☃", "list": []any{1.0, nil, 2.5}}},
		"exception":           {Type: "cinder.exception_Remote.ImageNotFound_Remote", Str: "Image image-1 could not be found."},
		"remote error":        {Type: "oslo_messaging.rpc.client.RemoteError", ExcType: "OutOfCheese", Value: "redo from start"},
		"no such method":      {Type: "oslo_messaging.rpc.client.RemoteError", ExcType: "NoSuchMethod", Value: "Endpoint does not support RPC method nope"},
		"unsupported version": {Type: "oslo_messaging.rpc.client.RemoteError", ExcType: "UnsupportedVersion", Value: "Endpoint does not support RPC version 1.6. Attempted method: echo"},
		"monitored":           {Result: "done"},
		"monitored, silent":   {Type: "oslo_messaging.exceptions.MessagingTimeout"},
		"ping":                {Result: "pong"},
		"cast to nobody":      {Type: "oslo_messaging.exceptions.MessageUndeliverable"},
	} {
		a, ok := got[name]
		if !ok || a.Type != want.Type || fmt.Sprint(a.Result) != fmt.Sprint(want.Result) || a.ExcType != want.ExcType ||
			a.Value != want.Value || !strings.HasPrefix(a.Str, want.Str) {
			t.Errorf("%s: %+v\nwant %+v", name, a, want)
		}
	}
	if took := got["monitored"].Took; took < 5 || took > 15 {
		t.Errorf("the monitored call took %.1f s", took)
	}
	if !strings.Contains(fmt.Sprint(got["exception"].Bases), "ImageNotFound") {
		t.Errorf("bases = %v", got["exception"].Bases)
	}
	for name, want := range map[string]string{"done": `"image_id": "i"`, "event": "51fd2ec1-830b-423c-9ef6-07d0a915bd52"} {
		if text := string(members[name]); !strings.Contains(text, want) || strings.Contains(text, "live-token") || !strings.Contains(text, `Gr\u00fc\u00dfe \u2603`) {
			t.Errorf("%s = %s (%s)", name, text, members["error"])
		}
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if fmt.Sprint(w.notes) != "[1 2]" {
		t.Errorf("casts received: %v", w.notes)
	}
}

// A message that ends every process that takes it, by SIGKILL, before anything is known of it.
func TestPoisonEndsProcesses(t *testing.T) {
	for _, kind := range []string{"classic", "quorum"} {
		t.Run(kind, func(t *testing.T) {
			s := openLab(t, configurations[kind])
			d := openDesk(t, s, func(o *Options) { o.Poison = 4 })
			d.send(wrap(poisonBody))
			killed := 0
			for range 10 {
				cmd := exec.CommandContext(d.ctx(), os.Args[0], "-test.run", "^TestPoisonTaker$")
				cmd.Env = append(os.Environ(), "POISON_TAKER="+strings.Join([]string{s.url(), d.o.Exchange, d.o.Topic}, " "))
				out, err := cmd.CombinedOutput()
				if err == nil {
					break
				}
				if cmd.ProcessState.ExitCode() != -1 {
					t.Fatalf("%v\n%s", err, out)
				}
				killed++
			}
			if killed != 4 {
				t.Errorf("%d processes have ended over it, want 4", killed)
			}
			l := d.openDead()
			if got := d.listed(l, 1)[0]; !strings.HasPrefix(got.Reason, "poison: 4 workers") || got.Deliveries != 4 || bytes.Contains(got.Body, []byte("tok-123")) {
				t.Errorf("dead letter %+v", got)
			}
			d.backlog(0)
		})
	}
}

// TestPoisonTaker is a process of TestPoisonEndsProcesses.
func TestPoisonTaker(t *testing.T) {
	args := strings.Fields(os.Getenv("POISON_TAKER"))
	if len(args) == 0 {
		return // not called by it
	}
	tr, err := ParseTransportURL(args[0])
	if err != nil {
		t.Fatal(err)
	}
	b, err := New(Options{Transport: tr, Exchange: args[1], Topic: args[2], Name: args[2], Poison: 4})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	ended := make(chan struct{})
	go func() { _ = b.Run(ctx); close(ended) }()
	defer func() { cancel(); <-ended }()
	d, err := b.Receive(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if d.DecodeError == nil {
		_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
	}
	for d.DeadLetter(ctx, "unreadable") != nil && ctx.Err() == nil { // until the publishing connection is there
		<-time.After(50 * time.Millisecond)
	}
}
