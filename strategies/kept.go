package strategies

import "encoding/json"

// Parts is where a job's parts are, as the journal keeps it.
type Parts struct {
	Source Ref    // the volume's image
	Dest   Ref    // the image that is made; the zero Ref when Glance itself stores the data
	FSID   string // of the cluster that has both
}

// Kept reads worker.Record.Kept, whichever strategy wrote it. The zero Parts for a job that had not come that far.
func Kept(raw json.RawMessage) (Parts, error) {
	if len(raw) == 0 {
		return Parts{}, nil
	}
	p, err := kept("look for a job's parts", raw)

	return Parts{Source: p.Source, Dest: p.Dest, FSID: p.FSID}, err
}
