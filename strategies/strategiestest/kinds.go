package strategiestest

import (
	"math/rand/v2"
	"testing"

	"github.com/cinderlift/cinderlift/strategies"
)

// Kind is a kind of volume that an image has to be made of.
type Kind struct {
	Name string

	// Build makes the volume and what it depends on.
	Build func(t testing.TB, r Rig) strategies.Ref
}

// Kinds lists the kinds of volumes that every cluster can have.
func Kinds() []Kind {
	return []Kind{
		{"thin", func(t testing.TB, r Rig) strategies.Ref {
			return r.volume(t, 12*r.ObjectSize, 0, 3, 7, 11)
		}},
		{"empty", func(t testing.TB, r Rig) strategies.Ref {
			return r.volume(t, 9*r.ObjectSize)
		}},
		{"full", func(t testing.TB, r Rig) strategies.Ref {
			return r.volume(t, 4*r.ObjectSize, 0, 1, 2, 3)
		}},
		{"size is no multiple of the object size", func(t testing.TB, r Rig) strategies.Ref {
			at := r.volume(t, 5*r.ObjectSize+512, 1)
			r.Backdoor.Write(t, at, 5*r.ObjectSize, noise(512, 99))

			return at
		}},
		{"clone of an image", func(t testing.TB, r Rig) strategies.Ref {
			return r.child(t, 0, 1, 4)
		}},
		{"clone of an image, shrunk", func(t testing.TB, r Rig) strategies.Ref {
			at := r.child(t, 0, 0)
			r.Backdoor.Resize(t, at, 3*r.ObjectSize+r.ObjectSize/2)

			return at
		}},
		{"clone of an image, grown", func(t testing.TB, r Rig) strategies.Ref {
			at := r.child(t, 0, 2)
			r.Backdoor.Resize(t, at, 11*r.ObjectSize)
			r.Backdoor.Write(t, at, 10*r.ObjectSize, noise(r.ObjectSize, 5))

			return at
		}},
		{"clone of an image, shrunk and grown again", func(t testing.TB, r Rig) strategies.Ref {
			at := r.child(t, 0, 1)
			// The parent's object 3 is now half visible: the other half is zeros that only the overlap explains.
			r.Backdoor.Resize(t, at, 3*r.ObjectSize+r.ObjectSize/2)
			r.Backdoor.Resize(t, at, 9*r.ObjectSize)

			return at
		}},
		{"clone of an image with smaller objects", func(t testing.TB, r Rig) strategies.Ref {
			return r.child(t, 2*r.ObjectSize, 1)
		}},
		{"clone of a clone", func(t testing.TB, r Rig) strategies.Ref {
			mid := r.child(t, 0, 2)
			r.Backdoor.Freeze(t, mid, "mid")
			at := r.name(t, r.Volumes)
			r.Backdoor.Put(t, at, Blueprint{Parent: mid, Snapshot: "mid", ObjectSize: r.ObjectSize})
			r.Backdoor.Write(t, at, 4*r.ObjectSize, noise(r.ObjectSize, 6))

			return at
		}},
	}
}

// volume makes an image in the volumes pool and fills the objects with these numbers.
func (r Rig) volume(t testing.TB, size int64, filled ...int64) strategies.Ref {
	t.Helper()
	at := r.name(t, r.Volumes)
	r.Backdoor.Put(t, at, Blueprint{Size: size, ObjectSize: r.ObjectSize})
	r.fill(t, at, r.ObjectSize, filled...)

	return at
}

// child makes a volume that is a clone of an image with six objects, and fills its own objects with these numbers.
func (r Rig) child(t testing.TB, objectSize int64, filled ...int64) strategies.Ref {
	t.Helper()
	up, at := r.name(t, r.Images), r.name(t, r.Volumes)
	r.Backdoor.Put(t, up, Blueprint{Size: 6 * r.ObjectSize, ObjectSize: r.ObjectSize})
	r.fill(t, up, r.ObjectSize, 0, 1, 3, 5)
	r.Backdoor.Freeze(t, up, strategies.GlanceSnapshot)
	r.Backdoor.Put(t, at, Blueprint{Parent: up, Snapshot: strategies.GlanceSnapshot, ObjectSize: objectSize})
	r.fill(t, at, max(r.ObjectSize, objectSize), filled...)

	return at
}

func (r Rig) fill(t testing.TB, at strategies.Ref, objectSize int64, numbers ...int64) {
	t.Helper()
	for _, n := range numbers {
		// Not from the object's start, not to its end: a part of an object is data as well.
		r.Backdoor.Write(t, at, n*objectSize+512, noise(objectSize-1024, uint64(n)+1))
	}
}

// name makes a name that is dropped when the test ends, children before parents.
func (r Rig) name(t testing.TB, pool string) strategies.Ref {
	t.Helper()
	at := strategies.Ref{Pool: pool, Image: "volume-" + r.ID()}
	t.Cleanup(func() { r.Backdoor.Drop(t, at) })

	return at
}

// noise is n bytes that no other seed gives.
func noise(n int64, seed uint64) []byte {
	random, data := rand.New(rand.NewPCG(seed, seed)), make([]byte, n)
	for i := range data {
		data[i] = byte(random.Uint32() | 1)
	}

	return data
}
