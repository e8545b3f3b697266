//! Every bound of the server, with its unit and its reason.
//!
//! What a peer, a file or a configuration can make grow has a limit here. Relations between limits
//! are asserted when the crate is compiled.

use std::time::Duration;

/// Bytes of a frame before the client has registered. A greeting is 2 bytes and a `register` call
/// about 40; the rest is room for long storage names and for credentials of old clients.
pub const FRAME_LEN_MAX_UNREGISTERED: usize = 8 * 1024;

/// Bytes of a frame of a registered client. One `storea` is one frame, so this bounds the size of
/// an object; ZEO itself has no bound below 4 GiB. A frame is in memory as a whole only up to
/// [`WHOLE_FRAME_LEN_MAX`].
pub const FRAME_LEN_MAX: usize = 1 << 30;

/// Bytes of a frame from which on the data of an object go to the transaction's temporary file as
/// they come, in pieces. So one connection takes no more than two times
/// [`STAGED_PIECE_LEN`] for a frame that comes in, and one read, however long it is. From here on
/// the memory would cost more than the temporary file.
pub const WHOLE_STORE_LEN_MAX: usize = 1 << 20;

/// Bytes of an object's data up to which they are read at once. Longer ones are read as the client
/// takes them, so that neither many loads of one client nor many clients take more memory than
/// [`LONG_READ_LEN`] and what waits for the socket.
pub const WHOLE_LOAD_LEN_MAX: usize = 1 << 20;

/// Bytes of a long reply that are read at a time, when no more than [`OUTPUT_RESUME_LEN`] wait for
/// the socket.
pub const LONG_READ_LEN: usize = 256 * 1024;

/// Bytes of a frame that is kept in memory until it has come as a whole, because it is not a store
/// of the form that Python's ZEO sends. Nothing else that a client has to say comes near.
pub const WHOLE_FRAME_LEN_MAX: usize = 64 << 20;

/// Bytes of an object's data that are written at once while they come. As much again is taken
/// meanwhile, then no more is read.
pub const STAGED_PIECE_LEN: usize = 1 << 20;

/// Pieces that are written at once though they are shorter in sum: what comes by the byte takes
/// memory for each piece. More than a network makes of [`STAGED_PIECE_LEN`].
pub const STAGED_PIECES_MAX: usize = 1024;

/// Values (numbers, texts, tuples, ...) in one message. Each takes about 40 bytes of memory but
/// may be one byte on the wire.
pub const VALUES_PER_MESSAGE_MAX: usize = 200_000;

/// How deep tuples, lists and dicts of one message may be nested. Clients need 4, transaction
/// extensions a few more; decoding and dropping recurse.
pub const VALUE_DEPTH_MAX: usize = 64;

/// Object data from this length on are queued for the socket as they are; shorter ones are copied
/// beside their message, which is cheaper than one more slot of `writev`.
pub const SHARED_DATA_LEN_MIN: usize = 1024;

/// Bytes of a record that is read, and sent, without memory of its own: it is copied into its
/// message. A longer one is worth an allocation, and three slots of `writev`.
pub const GLANCED_LEN_MAX: usize = 8 * 1024;

/// Bytes read from one connection in one turn, so that a client that floods us waits its turn. What
/// is read at once is kept at once, as long as a part of it is staged.
pub const READ_BYTES_PER_TURN: usize = 64 * 1024;

/// Connections accepted from one listener in one turn.
pub const ACCEPTS_PER_TURN: usize = 64;

/// Calls of one connection executed in one turn: as many as share the cost of the turn; more would
/// only keep the others waiting.
pub const CALLS_PER_TURN: usize = 64;

/// Bytes of answers of one connection from which on its other calls wait for the next turn.
pub const OUTPUT_LEN_PER_TURN: usize = 256 * 1024;

/// Calls of one client that wait for the disk; its further calls wait for them. As many as keep the
/// readers busy: each may come back with a large object.
pub const WAITING_CALLS_MAX: usize = 32;

/// Reads of all clients that are in the hands of the workers. Enough for the readers to find one
/// when they come back, and few enough for the next client not to wait for long.
pub const SHORT_READS_MAX: usize = 8;

/// The same of those that may take long: histories and logs. Fewer than there are readers.
pub const LONG_READS_MAX: usize = 2;

/// Iterators that a client may have open; stock clients close theirs when they are garbage.
pub const ITERATORS_MAX: usize = 10_000;

/// Entries of one answer about the past.
pub const HISTORY_ENTRIES_MAX: u64 = 100_000;

/// Characters of what a client calls itself; they stand in each log line about it.
pub const LABEL_LEN_MAX: usize = 80;

/// Bytes written to one connection in one turn, so that one that takes all at once waits its turn.
pub const WRITE_BYTES_PER_TURN: usize = 1 << 20;

/// Bytes of replies waiting for one client from which on we stop reading its calls.
pub const OUTPUT_PAUSE_LEN: usize = 1 << 20;

/// Bytes of replies waiting for one client below which we read its calls again.
pub const OUTPUT_RESUME_LEN: usize = 256 * 1024;

/// Bytes of invalidations and notices waiting for a client that does not read, beyond its
/// replies, from which on it is disconnected.
pub const OUTPUT_LEN_MAX: usize = 64 << 20;

/// Time that a connection has for the greeting and for registering. TCP checks of load balancers
/// and half-open connections end here.
pub const REGISTER_TIMEOUT: Duration = Duration::from_secs(60);

/// `new_oids` hands out at most as many as this, as ZEO does.
pub const OIDS_PER_CALL_MAX: u64 = 100;

/// Oids reserved on disk ahead of those handed out: what a restart skips at most (see
/// `storage::oids`).
pub const OID_RESERVE: u64 = 4096;

/// Transactions of which the changed oids are remembered, if the configuration does not say.
pub const INVALIDATION_QUEUE_DEFAULT: usize = 100;

/// The same in a replicated server: clients come back from a failover, which takes longer, and do
/// so all at once.
pub const INVALIDATION_QUEUE_REPLICATED: usize = 10_000;

/// How long a client waits for its greeting where it cannot be served. Then it is greeted, and
/// disconnected when it has registered: a stock client whose connection ends before that does not
/// try this address again while it tries others.
pub const PARKED_MAX: Duration = Duration::from_secs(10);

/// The same when another node has taken office: those who reach that have gone there by then.
pub const PARKED_BESIDE_PRIMARY_MAX: Duration = Duration::from_secs(2);

/// How long until the node is asked anew what is committed, for clients that wait for their
/// greeting, when it could not tell.
pub const GREETING_RETRY: Duration = Duration::from_millis(250);

/// How long a client that wants to write, and could not, may go on reading before it is to look
/// again: it does not do so by itself.
pub const FALLBACK_MAX: Duration = Duration::from_secs(30);

/// Descriptors that connections leave to files, unless that is more than half of all.
pub const DESCRIPTORS_KEPT: u64 = 64;

/// Time from a granted vote to `tpc_finish`, if the configuration does not say.
pub const TRANSACTION_TIMEOUT_DEFAULT: Duration = Duration::from_secs(30);

/// Bytes of data in conflicts that go back to a client to be resolved; for more the transaction is
/// refused, since all of it would be in memory at once.
pub const CONFLICTS_LEN_MAX: usize = 64 << 20;

/// Time that a client that was told of conflicts has for resolving them while nobody else gets
/// the commit lock. It needs two loads and one more vote.
pub const RESOLVE_TIMEOUT: Duration = Duration::from_secs(1);

/// Votes with conflicts of one transaction; the next one is refused with `ConflictError`. Stock
/// clients stop asking after nine and then behave as if all were well.
pub const VOTES_WITH_CONFLICTS_MAX: u32 = 8;

/// Transactions that one transaction may undo. Each is looked for from the end of the file on,
/// while nobody else gets the commit lock; undo pages name some dozens.
pub const UNDOS_MAX: usize = 10_000;

/// Objects that one transaction may change by undoing others. Each takes about 250 bytes of memory,
/// which no staging file can save.
pub const UNDONE_OBJECTS_MAX: usize = 4_000_000;

/// Objects named in the answer to an undo that fails; one is enough to let it fail.
pub const UNDO_ERRORS_MAX: usize = 1000;

/// Bytes of one transaction that are kept in memory before it is voted; more go to a temporary
/// file.
pub const STAGED_LEN_IN_MEMORY_MAX: usize = 8 << 20;

/// Data of a transaction from this length on stay in what was read from the socket, which is 64 KB
/// long: sixteen times what is counted is the most that they keep. Shorter ones are copied.
pub const STAGED_SHARED_LEN_MIN: usize = 4096;

/// Length of a transaction, and of a batch of such, up to which one sync may be enough for it
/// (`storage::witness`): what opening may find incomplete is no longer.
pub const WITNESSED_LEN_MAX: u64 = 1 << 20;

/// Bytes of a blob that are written at once. As much again is taken from its client meanwhile,
/// then no more is read: at most three times as much is in memory, and one frame.
pub const BLOB_WRITE_LEN: usize = 256 * 1024;

/// Bytes of a blob that are written without a sync. What is not synced is what others' syncs may
/// have to wait for, since a file system has one journal.
pub const BLOB_SYNC_LEN: u64 = 8 << 20;

/// Blobs of one transaction that are completed at a time; each is a sync, and they share it.
pub const BLOB_JOBS_MAX: usize = 8;

/// Bytes of a blob in one message to a client: what ZEO sends, and clients are used to.
pub const BLOB_CHUNK_LEN: usize = 59_000;

/// Blobs that are sent to a client at the same time, so that each is an open file; others wait.
pub const BLOBS_SENT_MAX: usize = 4;

/// Bytes of a blob that are read at once, of one blob a client at a time.
pub const BLOB_READ_LEN: usize = 4 * BLOB_CHUNK_LEN;

/// Bytes of user name, of description and of extension in the file format (2-byte lengths).
pub const METADATA_LEN_MAX: usize = u16::MAX as usize;

/// Time between two looks whether the index should be saved.
pub const INDEX_SAVE_INTERVAL: Duration = Duration::from_secs(60);

/// Bytes of new transactions after which the index is saved without waiting for
/// [`INDEX_SAVE_INTERVAL`]: what opening has to read again after a crash. More if the index itself
/// is longer than that, so that saving it does not cost more than the data.
pub const INDEX_SAVE_LEN: u64 = 64 << 20;

/// Bytes of TLS records of one connection that are encrypted ahead of what its socket has taken.
/// As much as one write takes at once; the rest waits unencrypted, where it is counted.
pub const TLS_BUFFER_LEN: usize = 64 * 1024;

/// Hosts and reasons of refused connections that are remembered, so that they are not logged each
/// time. Beyond that all are forgotten.
pub const REFUSALS_REMEMBERED_MAX: usize = 100;

/// Characters of the subject of a certificate in a log line.
pub const SUBJECT_LEN_MAX: usize = 200;

/// Bytes of a file of certificates: some ten thousand of them.
pub const PEM_LEN_MAX: u64 = 16 << 20;

/// Bytes of the password of a private key, as in OpenSSL.
pub const PASSWORD_LEN_MAX: u64 = 1024;

/// Time that a `password-command` has. The start waits for it.
pub const PASSWORD_COMMAND_TIMEOUT: Duration = Duration::from_secs(30);

/// How deep configuration files may include each other: what ends a file that includes itself.
pub const CONFIG_INCLUDE_DEPTH_MAX: usize = 8;

/// How deep sections of a configuration may be nested. Three are needed; dropping them recurses.
pub const CONFIG_SECTION_DEPTH_MAX: usize = 16;

/// Bytes of one value of a configuration with all that it refers to; definitions that refer to
/// each other twice would else double with every line.
pub const CONFIG_VALUE_LEN_MAX: usize = 64 * 1024;

/// Old log files that are kept; each is renamed when another one comes, while calls wait.
pub const OLD_LOG_FILES_MAX: u32 = 1000;

/// Bytes of a message of the group up to which it is put together; longer ones are given out in
/// parts as they come. Transactions go through the group up to 4 MB.
pub const WHOLE_MESSAGE_LEN_MAX: usize = 8 << 20;

/// Bytes that are kept of messages of the group that have not come as a whole, of all members.
pub const INCOMPLETE_MESSAGES_LEN_MAX: usize = 64 << 20;

/// Time without another fragment after which a message that has begun is forgotten. Longer than a
/// daemon holds back what is sent while its ring is formed anew.
pub const INCOMPLETE_MESSAGE_TIMEOUT: Duration = Duration::from_secs(60);

/// Bytes of ours that may be on their way through the daemon. What is sent behind them waits for
/// them: a sign of life must not wait for long.
pub const IN_FLIGHT_LEN_MAX: usize = 1 << 20;

/// Bodies of ours that may be on their way through the daemon: Spread disconnects who has a
/// thousand waiting for it, and corosync's library spins when its daemon has not taken 275.
pub const IN_FLIGHT_BODIES_MAX: usize = 64;

/// Bodies of the control lane that may be on their way besides those; and as many of signals
/// besides these.
pub const IN_FLIGHT_CONTROL_MAX: usize = 8;

/// Bodies that a daemon may have to keep for a member that is slow, of all senders: Spread's own
/// default is a thousand, at which it disconnects the member.
pub const MEMBER_BACKLOG_MAX: usize = 600;

/// How many bodies a sender may be ahead of any member, however many members there are.
pub const CREDIT_MIN: usize = 16;

/// Time for which a sender waits for a member that is far behind and says nothing. A member that is
/// stopped must not stop the others.
pub const CREDIT_WAIT_MAX: Duration = Duration::from_millis(500);

/// Bytes of messages that wait in one lane for their turn at the daemon; more are refused.
pub const LANE_LEN_MAX: usize = 64 << 20;

/// Messages that wait in one lane for their turn.
pub const LANE_MESSAGES_MAX: usize = 10_000;

/// Bytes that wait for the socket of a Spread daemon from which on it is busy: more than may be on
/// its way through it, so that only a daemon that has stopped reading gets there.
pub const SPREAD_OUTPUT_LEN_MAX: usize = 4 << 20;

/// Time that a Spread daemon has for each step of connecting. It takes nobody while it forms a ring
/// or has much to send, which are seconds.
pub const SPREAD_STEP_TIMEOUT: Duration = Duration::from_secs(10);

/// Time that a Spread daemon has for making us a member.
pub const SPREAD_JOIN_TIMEOUT: Duration = Duration::from_secs(30);

/// Time that a Spread daemon has for closing the connection when we have left.
pub const SPREAD_LEAVE_TIMEOUT: Duration = Duration::from_secs(2);

/// Time before the first new attempt to connect to a Spread daemon, and at most; it doubles in
/// between. Each client takes from half of it to all.
pub const SPREAD_RETRY_MIN: Duration = Duration::from_millis(50);
/// See [`SPREAD_RETRY_MIN`].
pub const SPREAD_RETRY_MAX: Duration = Duration::from_secs(5);

/// Time after which a membership counts as a success, so that the next attempt to connect follows
/// its end at once.
pub const SPREAD_SETTLED_AFTER: Duration = Duration::from_secs(5);

/// Time for which our name may be in use at a Spread daemon before we ask for another one. The end
/// of our last connection has to go round the ring, which may have to be formed anew first.
pub const SPREAD_NAME_RETRY: Duration = Duration::from_secs(10);

/// Time between two log lines about blobs that cannot be fetched, or have no room.
pub const BLOBS_LOG_INTERVAL: Duration = Duration::from_secs(5);

/// Time between two log lines about the same trouble with a daemon.
pub const TROUBLE_LOG_INTERVAL: Duration = Duration::from_secs(60);

/// Time between two signs of life that we send to ourselves through the daemon.
pub const HEARTBEAT_INTERVAL: Duration = Duration::from_secs(1);

/// Time without anything of ours coming back from the daemon after which that is said. A ring that
/// lost a member needs some seconds to be formed anew.
pub const SILENCE_WARNED: Duration = Duration::from_secs(5);

/// Time without anything of ours coming back after which the daemon is given up.
pub const SILENCE_MAX: Duration = Duration::from_secs(20);

/// Bytes read from the daemon in one turn, so that a flood leaves clients their turns. More than
/// from a client, since the daemon drops who reads slowly.
pub const DAEMON_BYTES_PER_TURN: usize = 512 * 1024;

/// Time that a connection to the daemon may take to come about.
pub const DAEMON_CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// Bytes of a file that one node gets of another at once: long enough that asking for the next
/// piece costs little, and short enough that what is urgent does not wait for long behind it.
pub const PEER_PIECE_LEN_MAX: usize = 1 << 20;

/// Bytes of a frame by which a node asks another one: far more than the longest has, which names
/// [`FETCH_ENDS_MAX`] ends of epochs.
pub const PEER_REQUEST_LEN_MAX: usize = 16 * 1024;

/// Bytes of entries in their frame: one that is as long as they may be, or many, with what is
/// around them.
pub const PEER_ENTRIES_LEN_MAX: usize = JOURNAL_BODY_LEN_MAX as usize + (4 << 20);

/// Bytes of the description of a copy: that of a journal's state, and a list of files.
pub const PEER_MANIFEST_LEN_MAX: usize = 4 << 20;

/// Bytes of transactions, or of a blob, whose digest one node asks of another at once: what is read
/// for it, during which nobody else gets pieces of files. One transaction may be longer.
pub const DIGEST_LEN: u64 = 8 << 20;

/// Bytes per second that are read to verify or back up a database, if nothing is said: about a
/// third of what a plain disk can.
pub const TASK_RATE_DEFAULT: u64 = 64 << 20;

/// Nodes that one command compares a database with.
pub const COMPARED_NODES_MAX: usize = 16;

/// Blobs in one part of the list of those of a copy.
pub const PEER_BLOBS_MAX: u32 = 10_000;

/// Bytes of what a node says when it refuses a request.
pub const PEER_REFUSAL_LEN_MAX: usize = 500;

/// Requests of one connection that are being answered; the next one waits unread.
pub const PEER_REQUESTS_MAX: usize = 16;

/// Bytes that the answers to them may have together, with what the other has not taken yet; the
/// next request waits, unless it is the only one. Entries count as [`FETCHED_LEN_MAX`]: one that is
/// longer comes alone.
pub const PEER_ANSWERS_LEN_MAX: usize = 32 << 20;

/// Requests that wait for their turn at one other node; more fail at once.
pub const PEER_WAITING_MAX: usize = 256;

/// Addresses of other nodes that are known at a time; requests to more fail.
pub const PEER_TARGETS_MAX: usize = 64;

/// Connections of other nodes at a time. Each node has one for what it asks for, and one for beats.
pub const PEER_CONNECTIONS_MAX: usize = 64;

/// Requests of threads that wait for the reactor to take them; who makes another one waits.
pub const PEER_CALLS_MAX: usize = 64;

/// Bytes read from one node in one turn, so that a copy leaves clients their turns.
pub const PEER_BYTES_PER_TURN: usize = 256 * 1024;

/// Bytes of a connection that have their digest and wait for the socket. The rest of a long frame
/// gets its digest when there is room, so that no turn has to do it for all of it.
pub const PEER_READY_LEN: usize = 256 * 1024;

/// Time that connecting to another node may take, with looking up its name.
pub const PEER_CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// Time that two nodes have to get to know each other.
pub const PEER_HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);

/// Time without a byte of a node that has been asked for something, after which it is given up.
pub const PEER_SILENCE_MAX: Duration = Duration::from_secs(10);

/// Time after which a node that has no answer yet says that it is there.
pub const PEER_ALIVE_INTERVAL: Duration = Duration::from_secs(3);

/// Time without a request after which a connection to another node is closed.
pub const PEER_IDLE_MAX: Duration = Duration::from_secs(60);

/// Time without a request after which a connection of another node is closed, which should have
/// done so itself.
pub const PEER_IDLE_ACCEPTED_MAX: Duration = Duration::from_secs(120);

/// Time for which a node may take nothing of what it has asked for.
pub const PEER_STUCK_MAX: Duration = Duration::from_secs(30);

/// Time before another attempt to connect to a node, and at most; it doubles in between.
pub const PEER_RETRY_MIN: Duration = Duration::from_millis(50);
/// See [`PEER_RETRY_MIN`].
pub const PEER_RETRY_MAX: Duration = Duration::from_secs(1);

/// Time between two beats to another node, by the direct path.
pub const BEAT_INTERVAL: Duration = Duration::from_millis(500);

/// Time without a word of a node by the direct path after which it counts as silent there, and its
/// connection for beats is given up.
pub const BEAT_LOST: Duration = Duration::from_secs(3);

/// Bytes of a beat, with what later versions may add.
pub const BEAT_LEN_MAX: usize = 256;

/// Nodes that get beats.
pub const BEAT_NODES_MAX: usize = 32;

/// Time after which a node gets no more beats that is not counted, not in the view and not heard.
pub const BEAT_FORGOTTEN: Duration = Duration::from_secs(600);

/// Time for which something has to be wrong, or well, with the paths to a node before it is told: a
/// daemon takes some seconds for a new view.
pub const TROUBLE_STEADY: Duration = Duration::from_secs(3);

/// Witnesses of a node at most; a thread asks each.
pub const WITNESSES_MAX: usize = 8;

/// The port of a witness if none is named: that of `echo`, where machines refuse, which is an
/// answer.
pub const WITNESS_PORT: u16 = 7;

/// Time between two questions to a witness.
pub const WITNESS_INTERVAL: Duration = Duration::from_secs(30);

/// The same while another node is missing.
pub const WITNESS_INTERVAL_MISSING: Duration = Duration::from_secs(5);

/// Time that a witness has to answer, without looking up its name.
pub const WITNESS_TIMEOUT: Duration = Duration::from_secs(2);

/// Time that `on-promote` and `on-demote` have; then they are killed, and have failed.
pub const OFFICE_COMMAND_TIMEOUT: Duration = Duration::from_secs(30);

/// Bytes of what such a command says that go to the log.
pub const OFFICE_OUTPUT_LEN_MAX: usize = 16 * 1024;

/// Time between two attempts of an `on-promote` that has failed.
pub const OFFICE_RETRY: Duration = Duration::from_secs(10);

// One question at a time.
const _: () = assert!(WITNESS_TIMEOUT.as_secs() < WITNESS_INTERVAL_MISSING.as_secs());
// A node that is at work is not given up.
const _: () = assert!(PEER_ALIVE_INTERVAL.as_secs() * 3 < PEER_SILENCE_MAX.as_secs());
// Who asks closes first, so that no request meets the end.
const _: () = assert!(PEER_IDLE_MAX.as_secs() < PEER_IDLE_ACCEPTED_MAX.as_secs());
// Pieces of a copy do not keep entries waiting.
const _: () = assert!(
    FETCHED_LEN_MAX as usize + PEER_REQUESTS_MAX * PEER_PIECE_LEN_MAX <= PEER_ANSWERS_LEN_MAX
);
const _: () = assert!(FETCHED_LEN_MAX as usize + FETCHED_ENTRIES_MAX * 512 < PEER_ENTRIES_LEN_MAX);
// Its length is one byte.
const _: () = assert!(STORAGE_NAME_LEN_MAX <= u8::MAX as usize);
const _: () = assert!(JOURNAL_STATE_LEN_MAX < PEER_MANIFEST_LEN_MAX as u64);

const _: () = assert!(IN_FLIGHT_LEN_MAX < SPREAD_OUTPUT_LEN_MAX);
const _: () = assert!(WHOLE_MESSAGE_LEN_MAX < INCOMPLETE_MESSAGES_LEN_MAX);
const _: () = assert!(OUTPUT_RESUME_LEN < OUTPUT_PAUSE_LEN && OUTPUT_PAUSE_LEN < OUTPUT_LEN_MAX);
const _: () = assert!(FRAME_LEN_MAX_UNREGISTERED < FRAME_LEN_MAX);
const _: () = assert!(FRAME_LEN_MAX < u32::MAX as usize);
const _: () = assert!(WHOLE_STORE_LEN_MAX < WHOLE_FRAME_LEN_MAX);
const _: () = assert!(WHOLE_FRAME_LEN_MAX < FRAME_LEN_MAX);
// A client whose answers are sent as they come is not kept from its calls.
const _: () = assert!(OUTPUT_LEN_PER_TURN <= OUTPUT_RESUME_LEN);
// A connection that is stopped has little left to send in comparison.
const _: () = assert!(TLS_BUFFER_LEN <= OUTPUT_RESUME_LEN);
// Sending blobs alone never keeps a client's calls from being read.
const _: () = assert!(OUTPUT_RESUME_LEN + 2 * BLOB_READ_LEN < OUTPUT_PAUSE_LEN);
// Nor does a long reply, while it is sent.
const _: () = assert!(OUTPUT_RESUME_LEN + LONG_READ_LEN < OUTPUT_PAUSE_LEN);
const _: () = assert!(OIDS_PER_CALL_MAX < OID_RESERVE);
const _: () = assert!(OIDS_PER_CALL_MAX < OID_BLOCK);
const _: () = assert!(PARKED_MAX.as_secs() < REGISTER_TIMEOUT.as_secs());

/// Bytes of a body that goes through corosync at once. Its library takes a little less than 1 MiB.
/// From 16 KiB on the throughput is the same, until it falls at 256 KiB; a small body of somebody
/// else waits least beside bodies of this length: 8 ms, against 12 beside those of 128 KiB, and 20
/// beside those of 16 KiB, of which more are under way.
pub const CPG_BODY_LEN_MAX: usize = 64 * 1024;

/// Bodies of ours that corosync has not delivered to us yet. From about 275 on that the daemon has
/// not taken its library waits for it in a loop.
pub const CPG_UNCONFIRMED_MAX: u32 = 128;

/// Pieces that a body for corosync's library may consist of. It copies their list, unchecked, to
/// where there is room for 63.
pub const CPG_PARTS_MAX: usize = 60;

/// Bytes of a group's name at corosync. Its own bound is 128, but there its daemon writes a zero
/// behind the end.
pub const CPG_GROUP_NAME_LEN_MAX: usize = 127;

/// Events of corosync that wait for the server, and bytes of bodies among them; beyond that they
/// stay with the daemon.
pub const CPG_EVENTS_MAX: usize = 256;
/// See [`CPG_EVENTS_MAX`].
pub const CPG_EVENTS_LEN_MAX: usize = 4 << 20;

/// Time that a new view waits for the word whether it is quorate, which comes after 0.3 to 15 ms.
pub const CPG_QUORUM_TIMEOUT: Duration = Duration::from_secs(1);

/// Time after which it is said that the daemon does not answer when we connect.
pub const CPG_OPEN_TIMEOUT: Duration = Duration::from_secs(10);

const _: () = assert!(CPG_BODY_LEN_MAX < CPG_EVENTS_LEN_MAX);
const _: () =
    assert!(IN_FLIGHT_BODIES_MAX + 2 * IN_FLIGHT_CONTROL_MAX < CPG_UNCONFIRMED_MAX as usize);

/// Bytes of a segment of the journal, if nothing else is said: a gigabyte of catch-up is sixteen
/// files, and what is kept too long is a sixteenth of it.
pub const JOURNAL_SEGMENT_LEN_DEFAULT: u64 = 64 << 20;

/// Bytes of the journal that are kept for nodes that come back, if nothing else is said.
pub const JOURNAL_WINDOW_LEN_DEFAULT: u64 = 1 << 30;

/// Bytes of the body of one entry of the journal, which is in memory as a whole when it is written
/// and when it is read.
pub const JOURNAL_BODY_LEN_MAX: u64 = 64 << 20;

/// Epochs of which first and last transactions are remembered; the oldest are forgotten, and with
/// them that caches of clients from then need not be cleared.
pub const JOURNAL_EPOCHS_MAX: usize = 10_000;

/// Bytes of a file of the journal's state: the longest lists the epochs, each in less than 100, and
/// has the settings.
pub const JOURNAL_STATE_LEN_MAX: u64 = 2 << 20;

/// Bytes of segments between two entries whose positions are remembered: what is read in vain to
/// find one, and 16 bytes of memory each.
pub const JOURNAL_INDEX_STEP: u64 = 64 * 1024;

/// Entries of a segment, its last ones, of which the end is remembered exactly, 24 bytes each: a
/// node that follows lacks fewer.
pub const JOURNAL_LATEST_MAX: usize = 1024;

const _: () = assert!(JOURNAL_EPOCHS_MAX as u64 * 100 < JOURNAL_STATE_LEN_MAX);

/// Bytes of a transaction up to which the entry that it becomes is made at once, if it is in
/// memory. Its digest takes a tenth of a millisecond.
pub const COMPOSED_AT_ONCE_LEN_MAX: u64 = 64 * 1024;

/// Transactions that a data file gets from the log between two checkpoints: as many statuses as
/// opening writes once more, since after a failed sync they may be shown and not be there.
pub const APPLIED_COUNT_MAX: usize = 1000;

/// Bytes that are applied before a checkpoint is made, if nothing else is said: what is read again
/// after a crash.
pub const APPLIED_LEN_DEFAULT: u64 = 64 << 20;

/// Bytes of a copy of the database between two syncs: what is copied again if the power goes, and
/// what others' syncs may have to wait for.
pub const COPY_SYNC_LEN: u64 = 64 << 20;

/// Blobs of a copy that are asked for at once, 24 bytes each.
pub const COPY_BLOBS_LISTED: usize = 1000;

/// Bytes of blobs that are read when a node is started, to see whether they are what they were: a
/// second's work at most. The others are looked at when they are used.
pub const BLOBS_CHECKED_LEN: u64 = 256 << 20;

/// Files of blobs that are kept open for peers, since opening one is to read all of it.
pub const BLOBS_OPEN_MAX: usize = 16;

/// Blobs that are told to be lost at once.
pub const LOST_BLOBS_MAX: usize = 1000;

/// Transactions that were applied and that nobody has asked for: as many as are kept for clients
/// that come back. Of what was before them it is only told that there was something.
pub const APPLIED_TOLD_MAX: usize = 10_000;

/// Objects in them, 16 bytes each. One transaction may have more.
pub const APPLIED_POSITIONS_TOLD_MAX: usize = 1_000_000;

/// Ends of epochs in a request for entries: a log that differs in more of its last epochs is
/// fetched from what is committed on.
pub const FETCH_ENDS_MAX: usize = 64;

/// How long a member of a view waits for the others to say their states: longer than a busy one
/// takes, and no longer than a lease, or writers would be turned away because of a member that
/// hangs.
pub const UNBLOCK_MAX: Duration = Duration::from_secs(2);

/// How often a replica says again how things are, while no primary is there.
pub const STATE_INTERVAL: Duration = Duration::from_secs(1);

/// A node whose clock differs by more than this from that of most says so.
pub const CLOCK_DIFFERENCE_WARNED: Duration = Duration::from_secs(1);

/// How long it must have differed: all have said what their clocks show once more by then.
pub const CLOCK_DIFFERENCE_LASTS: Duration = Duration::from_secs(10);

/// A node whose clock differs by more than this from that of most will not be primary.
pub const CLOCK_DIFFERENCE_MAX: Duration = Duration::from_secs(30);
/// Entries in the answer to such a request: that their values are not too many for a message.
pub const FETCHED_ENTRIES_MAX: usize = 4096;

/// Bytes of the bodies of such entries together, if there is more than one; for the same reason.
pub const FETCHED_LEN_MAX: u64 = 16 << 20;

/// Pieces of the body of an entry that are values of their own in a message; of more the short ones
/// are put together.
pub const ENTRY_PIECES_MAX: usize = 16;

/// Bytes of the name of a storage that nodes agree about.
pub const STORAGE_NAME_LEN_MAX: usize = 255;

/// Bytes of the name of a site.
pub const SITE_LEN_MAX: usize = 40;

// An entry is less than sixteen values and marks, and each piece one. Of more pieces than
// `ENTRY_PIECES_MAX` a short one may stand in front of each long one.
const _: () = assert!(
    FETCHED_ENTRIES_MAX * (ENTRY_PIECES_MAX + 16)
        + 2 * (FETCHED_LEN_MAX as usize).div_ceil(SHARED_DATA_LEN_MIN)
        <= VALUES_PER_MESSAGE_MAX
);
// In the longest body a short piece may stand in front of each long one.
const _: () = assert!(
    2 * (JOURNAL_BODY_LEN_MAX as usize).div_ceil(SHARED_DATA_LEN_MIN) + 100
        <= VALUES_PER_MESSAGE_MAX
);

/// Bytes of proposals that a replica keeps which come behind a gap; the others are fetched.
pub const AHEAD_LEN_MAX: u64 = 8 << 20;

/// Proposals that a replica keeps which come behind a gap.
pub const AHEAD_COUNT_MAX: u64 = 4096;

/// Entries that a replica may lack before it asks another replica for them, and not the primary.
pub const FAR_BEHIND: u64 = 1000;

/// How long a replica waits for entries that it has asked for.
pub const FETCH_TIMEOUT: Duration = Duration::from_secs(5);

/// How long a replica waits before it asks for entries again.
pub const FETCH_RETRY: Duration = Duration::from_millis(200);

/// How long a replica without room for its journal does nothing.
pub const NO_ROOM_RETRY: Duration = Duration::from_secs(1);

/// Signs of life that a primary remembers the times of: those of the longest lease, one for each
/// twentieth of [`PACE_MAX`].
pub const BEATS_MAX: usize = 640;

/// Within this time nodes that are there and well have answered, or, where leases are shorter,
/// within a lease: signs of life and elections are paced by it.
pub const PACE_MAX: Duration = Duration::from_secs(2);

/// A primary that is not in the view for so long, or for a quarter of the pace, is gone: long
/// enough for a view that is followed by another one at once.
pub const GONE_AFTER: Duration = Duration::from_millis(500);

/// Clients of a node that wait at a time to hear what is committed; more are sent away.
pub const CONFIRMS_MAX: usize = 1000;

/// Oids by which a ceiling is raised: one entry of the log for so many new objects, and so many
/// that are never handed out after a restart.
pub const OID_BLOCK: u64 = 10_000;

/// Requests for oids that wait for a ceiling to be raised.
pub const OID_REQUESTS_MAX: usize = 10_000;

/// Entries that a node may lack and be level: about what is on its way under load.
pub const LEVEL_COUNT: u64 = 100;

/// How long a swap may take, with the transactions that are being finished.
pub const SWAP_MAX: Duration = Duration::from_secs(10);

/// How often in a row all nodes have to say that they have not a blob, until it is taken for packed
/// away, and the database is copied.
pub const BLOB_GONE_COUNT: u32 = 5;

/// How long a node is believed to pack without a word of it.
pub const PACK_TURN_MAX: Duration = Duration::from_secs(5);

/// No epoch that somebody has claimed has a larger counter: there must always be a higher one.
pub const EPOCH_COUNTER_MAX: u64 = 1 << 63;

/// Entries that are applied again at once when the data of a node are replaced by a copy: some
/// seconds, during which it acknowledges nothing. If there are more, what has come since is copied
/// first, as far as that is of use.
pub const REFRESH_TAIL_MAX: u64 = 10_000;

/// How often that is done, and how often blobs are fetched for it that do not come.
pub const REFRESH_TRIES_MAX: u32 = 3;

/// How long a node waits to have applied what a copy has that is ahead of it.
pub const REFRESH_WAIT_MAX: Duration = Duration::from_secs(60);

/// Things that have happened to a node that its status tells.
pub const NOTICES_MAX: usize = 50;

/// Bytes of entries that wait for the disk of a journal. What comes while there are more is not
/// taken, or not asked for, until there are fewer: a disk may hang for hours.
pub const UNWRITTEN_MAX: u64 = 64 << 20;

/// Answers with entries whose blobs are being fetched. But for those that were asked for to take
/// office there is one of an epoch: they are asked for anew each [`FETCH_TIMEOUT`], and blobs may
/// take hours.
pub const ANSWERS_HELD_MAX: usize = 3;

/// How long the disk may take for one thing until that is told.
pub const DISK_SLOW: Duration = Duration::from_secs(5);

/// Time between two times that this is told.
pub const DISK_SLOW_TOLD: Duration = Duration::from_secs(60);

/// Transactions whose blobs a node fetches ahead, or has so fetched; of others it does not.
pub const OFFERS_MAX: usize = 256;

/// Blobs of a transaction that are fetched ahead; those of one with more are with its entry.
pub const OFFERED_BLOBS_MAX: usize = 1000;

/// How many of them it fetches at a time, so that entries are not behind too much.
pub const OFFERS_FETCHED_MAX: usize = 4;

/// How long a vote waits until most nodes have its blobs, and a second for each
/// [`OFFER_LEN_PER_SECOND`].
pub const OFFER_MAX: Duration = Duration::from_secs(10);

/// Bytes of blobs that nodes are expected to fetch in a second, at the least.
pub const OFFER_LEN_PER_SECOND: u64 = 1 << 20;

/// Proposals that wait for blobs at a node; those behind are fetched later.
pub const HELD_PROPOSALS_MAX: usize = 1024;

/// Voters that a new database may have: more would make commits slower, and safer for nobody.
pub const VOTERS_CONFIGURED_MAX: usize = 7;

/// How long a primary is believed to be there without a sign of life, though the daemon shows it,
/// if the configuration does not say: longer than Spread with its own settings delivers nothing
/// when a machine is lost (3.0 s).
pub const LEASE_DEFAULT_SPREAD: Duration = Duration::from_secs(5);
/// The same with corosync (8.0 s with three nodes, 11 s with five, 14 s with seven).
pub const LEASE_DEFAULT_COROSYNC: Duration = Duration::from_secs(15);
/// What the configuration may say. Below that a busy machine is taken for a dead one.
pub const LEASE_MIN: Duration = Duration::from_millis(500);
/// See [`LEASE_MIN`].
pub const LEASE_MAX: Duration = Duration::from_secs(60);

/// Bytes of the body of an entry up to which it goes through the group, if the configuration does
/// not say; and at most, so that with all around it is still put together as a whole.
pub const RING_BODY_LEN_DEFAULT: u64 = 4 << 20;
/// See [`RING_BODY_LEN_DEFAULT`].
pub const RING_BODY_LEN_MAX: u64 = 6 << 20;

const _: () = assert!(RING_BODY_LEN_MAX < WHOLE_MESSAGE_LEN_MAX as u64);

/// Bytes of the path of a Unix socket: what the kernel has room for, less the zero at its end.
pub const UNIX_PATH_LEN_MAX: usize = 107;

/// Copies of the database that other nodes make of this one at a time.
pub const SNAPSHOTS_MAX: usize = 4;

/// Bytes of the head of an HTTP request, and headers in it: browsers send about a kilobyte.
pub const HTTP_HEAD_LEN_MAX: usize = 8 * 1024;
/// See [`HTTP_HEAD_LEN_MAX`].
pub const HTTP_HEADERS_MAX: usize = 64;

/// Bytes of the body of an HTTP request: no command has more than a few names.
pub const HTTP_BODY_LEN_MAX: usize = 64 * 1024;

/// Connections of administrators and monitors at a time; of more the one that has been idle longest
/// is closed.
pub const ADMIN_CONNECTIONS_MAX: usize = 32;

/// Time without a whole request after which such a connection is closed. Longer than monitors wait
/// between two.
pub const ADMIN_IDLE_MAX: Duration = Duration::from_secs(75);

/// Bytes read from such a connection at once.
pub const ADMIN_READ_LEN: usize = 16 * 1024;

/// How long a client is left in doubt of what became of its transaction, by a node that is not in
/// office any more. Then its connection ends, as in a crash: while others are in office, a node
/// that is cut off cannot know.
pub const FINISH_DOUBT_MAX: Duration = Duration::from_secs(10);

/// Histories that a node remembers its own to be the future of.
pub const PAST_MAX: usize = 16;

/// How long a server that is followed may take for an answer. A stock one does nothing else while
/// it looks for where an iteration begins, which in a large file takes minutes.
pub const FOLLOW_REPLY_MAX: Duration = Duration::from_secs(300);

/// How long it may take for its greeting, and to let us in. One that takes longer is left for
/// another of its addresses.
pub const FOLLOW_GREETING_MAX: Duration = Duration::from_secs(15);

/// How often such a server is asked what its last transaction is, if it does not say.
pub const FOLLOW_ASK_INTERVAL: Duration = Duration::from_secs(30);

/// Bytes that are gathered before they are sent to this server.
pub const FOLLOW_UNSENT_LEN_MAX: usize = 256 * 1024;

/// Bytes of a record that is copied: with its call around it, it has to fit into a frame.
pub const FOLLOW_RECORD_LEN_MAX: usize = FRAME_LEN_MAX - 1024;

/// Objects of a transaction that was packed away of which it is asked what became of them; and of
/// each of the spans of time before it.
pub const FOLLOW_OIDS_ASKED: usize = 100;

/// Records here of such a span that are looked at; the older ones are left out.
pub const FOLLOW_OIDS_KEPT: usize = 10_000;

/// Blobs of one transaction that the source had not, and which it is asked for once more. Those
/// above are done without at once.
pub const FOLLOW_MISSING_MAX: usize = 100_000;

/// Oids above the highest one here that are left to clients of the server that is followed: they
/// have taken them, and store objects under them when they have come here.
pub const FOLLOW_OIDS_CLEAR: u64 = 1 << 20;

/// Pauses before a server that is followed is connected to again: the first, and the longest. Each
/// is twice as long as the one before it.
pub const FOLLOW_RETRY_MIN: Duration = Duration::from_secs(1);
/// See [`FOLLOW_RETRY_MIN`]. When a site moves, it is what people wait for.
pub const FOLLOW_RETRY_MAX: Duration = Duration::from_secs(5);

/// Pauses before a server is asked once more for transactions that it has told of, and does not
/// give: the first, and the longest. Each is twice as long as the one before it.
pub const FOLLOW_SHORT_MIN: Duration = Duration::from_secs(1);
/// See [`FOLLOW_SHORT_MIN`].
pub const FOLLOW_SHORT_MAX: Duration = Duration::from_secs(30);

/// Time that connecting may take.
pub const FOLLOW_CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// Time between two lines about a copy that goes on.
pub const FOLLOW_REPORT_INTERVAL: Duration = Duration::from_secs(10);

/// Time between two lines that say that following has stopped, or that the source is away.
pub const FOLLOW_REMIND_INTERVAL: Duration = Duration::from_secs(600);

/// Bytes read from a socket at once by a thread that follows.
pub const FOLLOW_READ_LEN: usize = 64 * 1024;
