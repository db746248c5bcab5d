package cinder

import (
	"context"
	"encoding/json"
	"errors"
	"slices"
	"strings"
	"testing"

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

func TestRejectFaults(t *testing.T) {
	why := &worker.Error{Op: "accept", Reason: worker.ReasonConflict, Err: errors.New("two of them")}
	for name, tc := range map[string]struct {
		reply   []fault
		dead    error
		ends    []string
		fails   bool
		replies int
	}{
		"all well":             {nil, nil, []string{"dead:conflict: accept: two of them"}, false, 1},
		"the caller is away":   {[]fault{{err: oslo.ErrUnroutable}}, nil, nil, true, 0},
		"the caller is gone":   {[]fault{{err: errors.Join(oslo.ErrReplyQueueGone, oslo.ErrUnroutable)}}, nil, []string{"dead:conflict: accept: two of them"}, false, 0},
		"reply not sent":       {[]fault{{err: errAway}}, nil, nil, true, 0},
		"reply sent, who knew": {[]fault{{err: errAway, applied: true}}, nil, nil, true, 1},
		"not dead-lettered":    {nil, errAway, nil, true, 1},
	} {
		t.Run(name, func(t *testing.T) {
			bus, message := &fakeBus{}, wire(t, golden(t, "call-driver.json"))
			bus.queue, message.deadErr = tc.reply, tc.dead
			err := taken(t, bus, message).Reject(context.Background(), why)
			if (err != nil) != tc.fails || !slices.Equal(message.ends, tc.ends) || len(bus.sent) != tc.replies {
				t.Errorf("error %v, message ended as %v, %d replies", err, message.ends, len(bus.sent))
			}
		})
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
