package glance_test

import (
	"fmt"
	"sync/atomic"
	"testing"

	"go.uber.org/goleak"

	"github.com/cinderlift/cinderlift/glance/glancetest"
	"github.com/cinderlift/cinderlift/internal/keystone"
	"github.com/cinderlift/cinderlift/internal/keystone/keystonetest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const fsid = "9d257340-7291-4b71-89ed-027b8fd153b8"

// fake is the cloud in memory.
type fake struct {
	*keystonetest.Cloud
	glance *glancetest.Server
	last   atomic.Int64
}

func newFake(t *testing.T, c glancetest.Config) *fake {
	t.Helper()
	f := &fake{Cloud: keystonetest.New(t), glance: glancetest.New(c)}
	f.Serve(keystone.Image, f.glance)

	return f
}

func (f *fake) session(t *testing.T) *keystone.Session { return f.Session(t) }

func (f *fake) project() string { return "owner" }

func (f *fake) image(*testing.T) string {
	id := fmt.Sprintf("00000000-0000-4000-8000-%012d", f.last.Add(1))
	f.glance.Put(glancetest.Image{ID: id, Status: "queued", Owner: f.project()})

	return id
}

func (f *fake) data(_ *testing.T, id string, k kind) (string, int64) {
	location := "rbd://" + fsid + "/images/" + id + "/snap"
	if k != missing {
		f.glance.PutData(location, glancetest.Data{Size: 1 << 20, Unreadable: k == unreadable})
	}

	return location, 1 << 20
}

func (f *fake) remove(_ *testing.T, id string) { f.glance.Remove(id) }

func (f *fake) stores() []string {
	var l []string
	for _, s := range f.glance.Config.Stores {
		l = append(l, s.ID)
	}

	return l
}

func twoStores() []glancetest.Store {
	return []glancetest.Store{
		{ID: "rbd", Type: "rbd", FSID: fsid, Pool: "images", Default: true}, {ID: "rbd2", Type: "rbd", FSID: fsid, Pool: "images2"},
	}
}

// generations are configurations that all serve.
func generations() map[string]glancetest.Config {
	return map[string]glancetest.Config{
		"PATCH, one store":                  {Minor: 15, MultipleLocations: true},
		"PATCH, two stores":                 {Minor: 15, MultipleLocations: true, Stores: twoStores()},
		"location API":                      {Minor: 17, Stores: twoStores(), TaskLooks: 2, SecureHash: true},
		"location API, no hash":             {Minor: 18, Stores: twoStores(), HashAlgorithm: "sha256"},
		"location API, no service role":     {Minor: 17, Stores: twoStores(), NoService: true, MultipleLocations: true},
		"location API, strict about tokens": {Minor: 17, NoService: true, StrictService: true, MultipleLocations: true},
		"location API and PATCH, one store": {Minor: 17, MultipleLocations: true, TaskLooks: 1},
	}
}

func TestConformanceOfTheFake(t *testing.T) {
	for name, config := range generations() {
		t.Run(name, func(t *testing.T) { conform(t, newFake(t, config)) })
	}
}
