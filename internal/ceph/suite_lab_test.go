//go:build lab

package ceph

import (
	"testing"
	"time"

	"github.com/cinderlift/cinderlift/strategies/strategiestest"
	"github.com/cinderlift/cinderlift/worker"
	"github.com/cinderlift/cinderlift/worker/workertest"
)

func labRig(t testing.TB) strategiestest.Rig {
	env, im := lab(t), labImages(t)

	return strategiestest.Rig{
		Source: im, Destination: im, Backdoor: &backdoor{im: labImages(t)},
		Volumes: env["LAB_POOL_VOLUMES"], Images: env["LAB_POOL_IMAGES"], ObjectSize: 64 << 10, ID: newID, Parallel: true,
	}
}

func TestImagesConform(t *testing.T) {
	strategiestest.Run(t, labRig(t))
}

func TestJournalConforms(t *testing.T) {
	o := labOptions(t)
	o.Namespace, o.LeaseTTL = "cinderlift-test-"+newID(), 3*time.Second
	wipe(t, labCluster(t, o))
	workertest.RunJournal(t, workertest.Rig{
		Journal: func(t testing.TB, owner string) worker.Journal {
			o := o
			o.Owner, o.Logger = owner, labOptions(t).Logger

			return labCluster(t, o)
		},
		ID: newID, TTL: o.LeaseTTL, Slack: 200 * time.Millisecond,
	})
}
