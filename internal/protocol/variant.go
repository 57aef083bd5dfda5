package protocol

// variant says where the model departs from the protocol as built. The zero
// variant does not.
type variant struct {
	anchorOutside      bool // the anchor is not in C(K)
	anchorExists       bool // compared is that the anchor exists, not its CreateRevision
	rangeForAnchor     bool // compared is that staged chunks exist, there is no anchor
	intentPerClient    bool // one anchor for all writes of a client, which none consumes
	sweepMoved         bool // sweep because K has moved past the base, whatever the anchor
	sweepSparesAnchor  bool // sweep chunks without the anchor among them
	sweepUnguarded     bool // sweep without a comparison with K
	sweepByModAlone    bool // sweep comparing the ModRevision of K alone
	sweepWhole         bool // sweep a whole token though it is named in part
	abandonByToken     bool // delete what was staged because K shows another token
	stageAgain         bool // send a batch again after a timeout
	commitAgain        bool // send a commit again after a timeout
	oldManifest        bool // send the old manifest after a conflict, for the new base
	renumber           bool // number the chunks of a token anew after a conflict
	reuseAcrossLeases  bool // reuse the chunks of a base with any lease
	reuseByKeyLease    bool // reuse by the lease of K, whatever the manifest says
	baseByModAlone     bool // prove the base by its ModRevision alone
	firstChunkUnproved bool // do not compare the first chunk beside the anchor
	sweepWholeOnly     bool // let be what is unnamed of a token that is named in part
	deaf               bool // do not learn from a conflict
	readByPlace        bool // read a chunk that the manifest of now names in that place
	anchorCreated      bool // the anchor is put once, and compared is its CreateRevision
}
