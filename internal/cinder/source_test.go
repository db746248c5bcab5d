package cinder

import (
	"context"
	"encoding/json"
	"errors"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cinderlift/cinderlift/internal/oslo"
	"github.com/cinderlift/cinderlift/worker"
)

func jsonOf(v any) ([]byte, error) { return json.Marshal(v) }

func TestReceiveEndsWithItsContext(t *testing.T) {
	ctx, stop := context.WithCancel(context.Background())
	stop()
	if _, err := NewSource(&fakeBus{}, SourceOptions{}).Receive(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("error = %v", err)
	}
}

func TestRejectTellsTheCaller(t *testing.T) {
	for name, tc := range map[string]struct {
		change func(m map[string]any)
		class  string
	}{
		"unknown method":   {func(m map[string]any) { m["method"] = "x" }, "NoSuchMethod"},
		"unknown version":  {func(m map[string]any) { m["version"] = "4.0" }, "UnsupportedVersion"},
		"unusable volume":  {func(m map[string]any) { args(m)["volume_id"] = "x" }, "ImageCopyFailure"},
		"undecodable args": {func(m map[string]any) { m["args"] = 1 }, "ImageCopyFailure"},
	} {
		t.Run(name, func(t *testing.T) {
			m := golden(t, "call-driver.json")
			tc.change(m)
			bus, message := &fakeBus{}, wire(t, m)
			d := taken(t, bus, message)
			_, why := d.Job()
			if err := d.Reject(context.Background(), why); err != nil {
				t.Fatal(err)
			}
			if failure, _ := bus.sent[0].message["failure"].(string); !strings.Contains(failure, `"class":"`+tc.class+`"`) {
				t.Errorf("failure = %s", failure)
			}
			if len(message.ends) != 1 || !strings.HasPrefix(message.ends[0], "dead:bad-request: ") {
				t.Errorf("the message ended as %v", message.ends)
			}
		})
	}
}

// TestRejectFaults: each write of a rejection is not applied, or applied and reported failed, for a moment and for long. It
// is tried again, and in the end the message is settled: put aside, or given back.
func TestRejectFaults(t *testing.T) {
	why := &worker.Error{Op: "accept", Reason: worker.ReasonConflict, Err: errors.New("two of them")}
	const aside = "dead:conflict: accept: two of them"
	gone := fault{err: errors.Join(oslo.ErrReplyQueueGone, oslo.ErrUnroutable)}
	for name, tc := range map[string]struct {
		reply   []fault
		dead    []error
		end     string
		fails   bool
		replies int
	}{
		"all well":             {nil, nil, aside, false, 1},
		"the caller is away":   {[]fault{{err: oslo.ErrUnroutable}}, nil, aside, false, 1},
		"the caller is gone":   {[]fault{gone}, nil, aside, false, 0},
		"reply not sent":       {[]fault{{err: errAway}}, nil, aside, false, 1},
		"reply sent, who knew": {[]fault{{err: errAway, applied: true}}, nil, aside, false, 2},
		"not put aside":        {nil, []error{errAway}, aside, false, 2},
		"never told":           {slices.Repeat([]fault{{err: errAway}}, 60), nil, "requeue", true, 0},
		"never put aside":      {nil, slices.Repeat([]error{errAway}, 60), "requeue", true, rejectTries},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				bus, message := &fakeBus{}, wire(t, golden(t, "call-driver.json"))
				bus.queue, message.deadErrs = tc.reply, tc.dead
				start := time.Now()
				err := taken(t, bus, message).Reject(context.Background(), why)
				if (err != nil) != tc.fails || !slices.Equal(message.ends, []string{tc.end}) || len(bus.sent) != tc.replies {
					t.Errorf("error %v, message ended as %v, %d replies", err, message.ends, len(bus.sent))
				}
				if took := time.Since(start); took > time.Minute {
					t.Errorf("took %v", took)
				}
			})
		})
	}
}

// TestRejectGivesBackWhenStopped: the pause ends with the context, and the message does not wait for the connection's end.
func TestRejectGivesBackWhenStopped(t *testing.T) {
	message := wire(t, golden(t, "cast-manager.json"))
	message.deadErrs = slices.Repeat([]error{errAway}, 60)
	ctx, stop := context.WithCancel(context.Background())
	stop()
	if err := taken(t, &fakeBus{}, message).Reject(ctx, errors.New("x")); !errors.Is(err, errAway) || !slices.Equal(message.ends, []string{"requeue"}) {
		t.Errorf("error %v, ended as %v", err, message.ends)
	}
}

// TestRejectOfWhatIsGone: the broker delivers it again anyway.
func TestRejectOfWhatIsGone(t *testing.T) {
	message := wire(t, golden(t, "cast-manager.json"))
	message.deadErrs = []error{oslo.ErrDeliveryGone}
	if err := taken(t, &fakeBus{}, message).Reject(context.Background(), errors.New("x")); !errors.Is(err, oslo.ErrDeliveryGone) || len(message.ends) != 0 {
		t.Errorf("error %v, ended as %v", err, message.ends)
	}
}

func TestRejectOfACastTellsNobody(t *testing.T) {
	bus, message := &fakeBus{}, wire(t, golden(t, "cast-manager.json"))
	if err := taken(t, bus, message).Reject(context.Background(), badRequest(errors.New("x"))); err != nil {
		t.Fatal(err)
	}
	if len(bus.sent) != 0 || len(message.ends) != 1 {
		t.Errorf("sent %v, ended as %v", bus.sent, message.ends)
	}
}
