//! libcpg and libquorum, loaded when they are needed.
//!
//! The one file with unsafe code. Types and numbers are those of `corosync/cpg.h`,
//! `corosync/quorum.h` and `corosync/corotypes.h` of corosync 3.1; their sizes and offsets were
//! compared with what a C compiler makes of those headers (x86-64), and are asserted below. The ABI
//! is the same since libcpg.so.4 and libquorum.so.5; the second model of the quorum service came
//! with corosync 3.1.
//!
//! A callback is called by `cpg_dispatch` or `quorum_dispatch`, on the same thread and before that
//! returns, so it leaves its event in a thread-local place, and no pointer of ours is given to the
//! library for longer than a call.

#![allow(unsafe_code, reason = "C libraries are called here, and nowhere else")]
#![deny(clippy::undocumented_unsafe_blocks)]

use std::cell::RefCell;
use std::ffi::{c_int, c_uint, c_void};
use std::fmt;
use std::io::IoSlice;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use libloading::Library as Loaded;
use rustix::event::epoll;
use rustix::net::Shutdown;

use super::envelope::{ENVELOPE_LEN, incoming};
use super::{
    Address, Connection, CpgEvent, Failure, Library, OpenError, Opened, Quorum, QuorumEvent,
    Reason, RingId,
};
use crate::limits::{CPG_BODY_LEN_MAX, CPG_PARTS_MAX};

const LIBCPG: &str = "libcpg.so.4";
const LIBQUORUM: &str = "libquorum.so.5";

/// `cs_error_t`
const CS_OK: c_int = 1;
const CS_ERR_TRY_AGAIN: c_int = 6;
/// Not of the library: it said that all was well, and there was nothing.
const SILENT: c_int = -1;

/// `cs_dispatch_flags_t`: one event or none, without waiting.
const CS_DISPATCH_ONE_NONBLOCKING: c_int = 4;

/// `cpg_model_t`, and its flag: the ring in which we join is told, too.
const CPG_MODEL_V1: c_int = 1;
const CPG_MODEL_V1_DELIVER_INITIAL_TOTEM_CONF: c_uint = 1;

/// `cpg_guarantee_t`: one order for all members. The stronger one is not implemented.
const CPG_TYPE_AGREED: c_int = 2;

/// `quorum_model_t`
const QUORUM_MODEL_V1: c_int = 1;

/// What `quorum_model_initialize` says of a daemon with a quorum provider.
const QUORUM_SET: u32 = 1;

/// `quorum_trackstart`: how it is now, and each change.
const CS_TRACK_CURRENT_AND_CHANGES: c_uint = 1 | 2;

/// How often a join is asked for that the daemon cannot take, and how long between. It cannot while
/// nodes come and go, nor while it has not seen the end of our last membership.
const JOIN_ATTEMPTS: u32 = 100;
const JOIN_PAUSE: Duration = Duration::from_millis(20);

/// Dispatches in a row without an event. Some are what others' bodies above 1 MiB look like before
/// their last piece; more are a library that does not say that its connection is gone.
const SILENCE_MAX: u32 = 10_000;

/// Descriptors of corosync that are watched, told apart by nobody.
const EVENT_DATA: u64 = 0;

/// `struct cpg_address`
#[repr(C)]
#[derive(Clone, Copy)]
struct CpgAddress {
    nodeid: u32,
    pid: u32,
    reason: u32,
}

/// `struct cpg_name`
#[repr(C)]
struct CpgName {
    length: u32,
    value: [u8; 128],
}

/// `struct cpg_ring_id`, and `struct quorum_ring_id`.
#[repr(C)]
#[derive(Clone, Copy)]
struct CRingId {
    nodeid: u32,
    seq: u64,
}

type DeliverFn = unsafe extern "C" fn(u64, *const CpgName, u32, u32, *mut c_void, usize);
type ConfchgFn = unsafe extern "C" fn(
    u64,
    *const CpgName,
    *const CpgAddress,
    usize,
    *const CpgAddress,
    usize,
    *const CpgAddress,
    usize,
);
type TotemConfchgFn = unsafe extern "C" fn(u64, CRingId, u32, *const u32);
type QuorateFn = unsafe extern "C" fn(u64, u32, CRingId, u32, *const u32);
type NodelistFn =
    unsafe extern "C" fn(u64, CRingId, u32, *const u32, u32, *const u32, u32, *const u32);

/// `cpg_model_v1_data_t`
#[repr(C)]
struct CpgModelV1 {
    model: c_int,
    deliver: DeliverFn,
    confchg: ConfchgFn,
    totem_confchg: TotemConfchgFn,
    flags: c_uint,
}

/// `quorum_model_v1_data_t`
#[repr(C)]
struct QuorumModelV1 {
    model: c_int,
    quorate: QuorateFn,
    nodelist: NodelistFn,
}

const _: () = assert!(size_of::<CpgAddress>() == 12 && align_of::<CpgAddress>() == 4);
const _: () = assert!(size_of::<CpgName>() == 132 && align_of::<CpgName>() == 4);
#[cfg(target_pointer_width = "64")]
const _: () = {
    use std::mem::offset_of;
    assert!(size_of::<CRingId>() == 16 && offset_of!(CRingId, seq) == 8);
    assert!(size_of::<CpgModelV1>() == 40 && offset_of!(CpgModelV1, deliver) == 8);
    assert!(offset_of!(CpgModelV1, totem_confchg) == 24 && offset_of!(CpgModelV1, flags) == 32);
    assert!(size_of::<QuorumModelV1>() == 24 && offset_of!(QuorumModelV1, quorate) == 8);
    assert!(offset_of!(QuorumModelV1, nodelist) == 16);
};

/// What both libraries have under their own names.
#[derive(Clone, Copy)]
struct Common {
    finalize: unsafe extern "C" fn(u64) -> c_int,
    fd_get: unsafe extern "C" fn(u64, *mut c_int) -> c_int,
    dispatch: unsafe extern "C" fn(u64, c_int) -> c_int,
}

/// Functions of libcpg, with the library that they are in.
struct Cpg {
    model_initialize: unsafe extern "C" fn(*mut u64, c_int, *mut CpgModelV1, *mut c_void) -> c_int,
    max_atomic_msgsize_get: unsafe extern "C" fn(u64, *mut u32) -> c_int,
    join: unsafe extern "C" fn(u64, *const CpgName) -> c_int,
    leave: unsafe extern "C" fn(u64, *const CpgName) -> c_int,
    mcast_joined: unsafe extern "C" fn(u64, c_int, *const c_void, c_uint) -> c_int,
    local_get: unsafe extern "C" fn(u64, *mut c_uint) -> c_int,
    common: Common,
    _library: Loaded,
}

/// The same of libquorum.
struct QuorumLibrary {
    model_initialize:
        unsafe extern "C" fn(*mut u64, c_int, *mut QuorumModelV1, *mut u32, *mut c_void) -> c_int,
    trackstart: unsafe extern "C" fn(u64, c_uint) -> c_int,
    common: Common,
    _library: Loaded,
}

/// The libraries of this machine.
pub struct System {
    /// Holds the descriptors of all connections, level-triggered.
    epoll: Arc<OwnedFd>,
    /// Loaded once, when the first connection is made.
    cpg: Mutex<Option<Arc<Cpg>>>,
    quorum: Mutex<Option<Arc<QuorumLibrary>>>,
}

impl System {
    /// Loads nothing yet. Fails if the process has no descriptor left.
    pub fn new() -> std::io::Result<Self> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        Ok(Self {
            epoll: Arc::new(epoll),
            cpg: Mutex::new(None),
            quorum: Mutex::new(None),
        })
    }

    fn cpg(&self) -> Result<Arc<Cpg>, OpenError> {
        let mut cpg = self.cpg.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(cpg) = &*cpg {
            return Ok(cpg.clone());
        }
        Ok(cpg.insert(Arc::new(load_cpg()?)).clone())
    }

    fn quorum(&self) -> Result<Arc<QuorumLibrary>, OpenError> {
        let mut quorum = self.quorum.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(quorum) = &*quorum {
            return Ok(quorum.clone());
        }
        Ok(quorum.insert(Arc::new(load_quorum()?)).clone())
    }

    /// Connects to the quorum service, and says how that went. It is worth nothing without CPG, and
    /// CPG is worth the same without it.
    fn open_quorum(&self) -> (Quorum, Option<Handle<QuorumLibrary>>) {
        match self.try_open_quorum() {
            Ok((handle, QUORUM_SET)) => (Quorum::Tracked, Some(handle)),
            Ok((handle, _)) => (Quorum::NoProvider, Some(handle)),
            Err(error) => (Quorum::Unknown(error.to_string()), None),
        }
    }

    fn try_open_quorum(&self) -> Result<(Handle<QuorumLibrary>, u32), OpenError> {
        let library = self.quorum()?;
        let mut model = QuorumModelV1 {
            model: QUORUM_MODEL_V1,
            quorate: on_quorate,
            nodelist: on_nodelist,
        };
        let (mut handle, mut kind) = (0, 0);
        let initialize = library.model_initialize;
        // SAFETY: the signature is that of the header. All pointers are valid for the call, and
        // the library copies `model` and keeps the context, which is null and never used.
        let code = unsafe {
            initialize(
                &raw mut handle,
                QUORUM_MODEL_V1,
                &raw mut model,
                &raw mut kind,
                std::ptr::null_mut(),
            )
        };
        check("quorum_model_initialize", code)?;
        let (trackstart, common) = (library.trackstart, library.common);
        let mut handle = Handle::new(library, common, handle);
        handle.watch(&self.epoll)?;
        // SAFETY: the signature is that of the header; the handle is open.
        let code = unsafe { trackstart(handle.number, CS_TRACK_CURRENT_AND_CHANGES) };
        check("quorum_trackstart", code)?;
        Ok((handle, kind))
    }

    fn open_cpg(&self) -> Result<Handle<Cpg>, OpenError> {
        let library = self.cpg()?;
        let mut model = CpgModelV1 {
            model: CPG_MODEL_V1,
            deliver: on_deliver,
            confchg: on_confchg,
            totem_confchg: on_totem_confchg,
            flags: CPG_MODEL_V1_DELIVER_INITIAL_TOTEM_CONF,
        };
        let mut handle = 0;
        let initialize = library.model_initialize;
        // SAFETY: as for the quorum service.
        let code = unsafe {
            initialize(
                &raw mut handle,
                CPG_MODEL_V1,
                &raw mut model,
                std::ptr::null_mut(),
            )
        };
        check("cpg_model_initialize", code)?;
        let common = library.common;
        let mut handle = Handle::new(library, common, handle);
        handle.watch(&self.epoll)?;
        Ok(handle)
    }
}

impl fmt::Debug for System {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("System")
            .field("epoll", &self.epoll)
            .finish_non_exhaustive()
    }
}

impl Library for System {
    fn open(&self, group: &str) -> Result<Opened, OpenError> {
        let cpg = self.open_cpg()?;
        let (mut node, mut len_max) = (0, 0);
        let local_get = cpg.library.local_get;
        // SAFETY: the signature is that of the header; the handle is open, the pointer valid.
        let code = unsafe { local_get(cpg.number, &raw mut node) };
        check("cpg_local_get", code)?;
        let max_get = cpg.library.max_atomic_msgsize_get;
        // SAFETY: the same.
        let code = unsafe { max_get(cpg.number, &raw mut len_max) };
        check("cpg_max_atomic_msgsize_get", code)?;
        // Before the join, so that the quorum service has spoken of the ring in which we join.
        let (quorum, quorum_handle) = self.open_quorum();
        let connection = SystemConnection {
            cpg,
            quorum: quorum_handle,
            group: cpg_name(group),
            me: Address {
                node,
                // The library calls us by it, too.
                pid: std::process::id(),
            },
            silence: 0,
        };
        connection.join()?;
        Ok(Opened {
            me: connection.me,
            connection: Box::new(connection),
            len_max: usize::try_from(len_max).unwrap_or(usize::MAX),
            quorum,
        })
    }

    fn descriptor(&self) -> Option<RawFd> {
        Some(self.epoll.as_raw_fd())
    }
}

/// A handle of one of the libraries, with its descriptor. It is used by one thread at a time; that
/// is all that the libraries ask for.
struct Handle<L> {
    library: Arc<L>,
    common: Common,
    number: u64,
    /// The descriptor, and where it is watched.
    watched: Option<(RawFd, Arc<OwnedFd>)>,
    /// The descriptor, once it is known.
    fd: Option<RawFd>,
}

impl<L> Handle<L> {
    const fn new(library: Arc<L>, common: Common, number: u64) -> Self {
        Self {
            library,
            common,
            number,
            watched: None,
            fd: None,
        }
    }

    fn watch(&mut self, epoll: &Arc<OwnedFd>) -> Result<(), OpenError> {
        let mut fd = -1;
        let fd_get = self.common.fd_get;
        // SAFETY: the signature is that of the header; the handle is open, the pointer valid.
        let code = unsafe { fd_get(self.number, &raw mut fd) };
        check("fd_get", code)?;
        if fd < 0 {
            return Err(OpenError::Descriptor(format!("number {fd}")));
        }
        self.fd = Some(fd);
        let data = epoll::EventData::new_u64(EVENT_DATA);
        epoll::add(epoll, borrow(self, fd), data, epoll::EventFlags::IN)
            .map_err(|error| OpenError::Descriptor(error.to_string()))?;
        self.watched = Some((fd, epoll.clone()));
        Ok(())
    }

    fn unwatch(&mut self) {
        if let Some((fd, epoll)) = self.watched.take()
            && let Err(error) = epoll::delete(epoll, borrow(self, fd))
        {
            log::warn!("corosync: descriptor {fd} is still watched ({error})");
        }
    }
}

impl<L> Drop for Handle<L> {
    fn drop(&mut self) {
        self.unwatch();
        // To finalize is to ask the daemon, and to wait for the answer: of a stopped one, for
        // ever. From a connection that is shut down the library gets an error at once.
        if let Some(fd) = self.fd
            && let Err(error) = rustix::net::shutdown(borrow(self, fd), Shutdown::Both)
        {
            // Not connected any more: the daemon was first.
            log::debug!("corosync: a connection has ended ({error})");
        }
        let finalize = self.common.finalize;
        // SAFETY: the signature is that of the header. The handle is not used after this, and its
        // descriptor, which this closes, is no longer watched. That it fails says nothing new.
        unsafe { finalize(self.number) };
    }
}

/// The descriptor `fd` of a handle.
const fn borrow<L>(_open: &Handle<L>, fd: RawFd) -> BorrowedFd<'_> {
    // SAFETY: the library gave it (`fd_get`), it is not -1, and it is open until the handle is
    // finalized, which is when it is dropped.
    unsafe { BorrowedFd::borrow_raw(fd) }
}

struct SystemConnection {
    cpg: Handle<Cpg>,
    quorum: Option<Handle<QuorumLibrary>>,
    group: CpgName,
    me: Address,
    /// Dispatches since the last event.
    silence: u32,
}

impl fmt::Debug for SystemConnection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SystemConnection")
            .field("me", &self.me)
            .finish_non_exhaustive()
    }
}

impl SystemConnection {
    fn join(&self) -> Result<(), Failure> {
        let join = self.cpg.library.join;
        let mut attempts = 1;
        loop {
            // SAFETY: the signature is that of the header; the handle is open, the name valid.
            let code = unsafe { join(self.cpg.number, &raw const self.group) };
            if code != CS_ERR_TRY_AGAIN || attempts == JOIN_ATTEMPTS {
                return check("cpg_join", code);
            }
            attempts += 1;
            // This thread is one that may wait.
            std::thread::sleep(JOIN_PAUSE);
        }
    }

    /// What a dispatch that returned `code` has left here.
    fn dispatched(&mut self, call: &'static str, code: c_int) -> Result<Option<Heard>, Failure> {
        let heard = INBOX.take().heard;
        if code == CS_ERR_TRY_AGAIN {
            return Ok(None);
        }
        check(call, code)?;
        self.silence = if heard.is_some() { 0 } else { self.silence + 1 };
        if self.silence > SILENCE_MAX {
            return Err(Failure { call, code: SILENT });
        }
        Ok(Some(heard.unwrap_or(Heard::Nothing)))
    }
}

impl Connection for SystemConnection {
    fn poll_quorum(&mut self) -> Result<Option<QuorumEvent>, Failure> {
        loop {
            let Some(handle) = &self.quorum else {
                return Ok(None);
            };
            let dispatch = handle.common.dispatch;
            // SAFETY: the signature is that of the header; the handle is open. What it calls back
            // is below, and touches nothing that is borrowed here.
            let code = unsafe { dispatch(handle.number, CS_DISPATCH_ONE_NONBLOCKING) };
            match self.dispatched("quorum_dispatch", code)? {
                Some(Heard::Quorum(event)) => return Ok(Some(event)),
                Some(_) => {}
                None => return Ok(None),
            }
        }
    }

    fn poll_cpg(&mut self) -> Result<Option<CpgEvent>, Failure> {
        loop {
            INBOX.set(Inbox {
                me: self.me,
                heard: None,
            });
            let dispatch = self.cpg.common.dispatch;
            // SAFETY: as above.
            let code = unsafe { dispatch(self.cpg.number, CS_DISPATCH_ONE_NONBLOCKING) };
            match self.dispatched("cpg_dispatch", code)? {
                Some(Heard::Cpg(event)) => return Ok(Some(event)),
                Some(_) => {}
                None => return Ok(None),
            }
        }
    }

    fn multicast(&mut self, parts: &[&[u8]]) -> Result<bool, Failure> {
        assert!(parts.len() <= CPG_PARTS_MAX, "the library has no more room");
        let len: usize = parts.iter().map(|part| part.len()).sum();
        // What is longer than it takes as a whole the library would cut, and wait for the daemon.
        assert!(
            len <= CPG_BODY_LEN_MAX + ENVELOPE_LEN,
            "a body was not checked"
        );
        let slices: Vec<IoSlice<'_>> = parts.iter().map(|part| IoSlice::new(part)).collect();
        let count = c_uint::try_from(slices.len()).unwrap_or_default();
        let multicast = self.cpg.library.mcast_joined;
        // SAFETY: the signature is that of the header. `IoSlice` has the layout of `struct iovec`,
        // which std guarantees on Unix; the slices are valid for the call, and only read.
        let code = unsafe {
            multicast(
                self.cpg.number,
                CPG_TYPE_AGREED,
                slices.as_ptr().cast(),
                count,
            )
        };
        if code == CS_ERR_TRY_AGAIN {
            return Ok(false);
        }
        check("cpg_mcast_joined", code)?;
        Ok(true)
    }

    fn mute(&mut self) {
        self.cpg.unwatch();
        if let Some(quorum) = &mut self.quorum {
            quorum.unwatch();
        }
    }

    fn leave(self: Box<Self>) {
        let leave = self.cpg.library.leave;
        // SAFETY: the signature is that of the header; the handle is open, the name valid.
        let code = unsafe { leave(self.cpg.number, &raw const self.group) };
        if let Err(failure) = check("cpg_leave", code) {
            log::debug!("corosync: {failure}");
        }
    }
}

fn check(call: &'static str, code: c_int) -> Result<(), Failure> {
    if code == CS_OK {
        Ok(())
    } else {
        Err(Failure { call, code })
    }
}

/// The name of a group, which [`Session`](super::Session) has found to be short enough.
fn cpg_name(group: &str) -> CpgName {
    let mut name = CpgName {
        length: 0,
        value: [0; 128],
    };
    for (to, from) in name.value.iter_mut().zip(group.bytes()) {
        *to = from;
        name.length += 1;
    }
    name
}

/// What a callback has left behind.
enum Heard {
    Cpg(CpgEvent),
    Quorum(QuorumEvent),
    Nothing,
}

struct Inbox {
    /// Who we are, so that bodies for others are not copied.
    me: Address,
    heard: Option<Heard>,
}

impl Default for Inbox {
    fn default() -> Self {
        Self {
            me: Address { node: 0, pid: 0 },
            heard: None,
        }
    }
}

thread_local! {
    static INBOX: RefCell<Inbox> = RefCell::default();
}

fn hear(heard: Heard) {
    INBOX.with_borrow_mut(|inbox| inbox.heard = Some(heard));
}

/// The list that a callback was given.
///
/// # Safety
///
/// There must be `count` values at `first`, for as long as the result is used, or `count` is 0.
unsafe fn list<'a, T>(first: *const T, count: usize) -> &'a [T] {
    if count == 0 || first.is_null() {
        return &[];
    }
    // SAFETY: by the condition above.
    unsafe { std::slice::from_raw_parts(first, count) }
}

/// `list` for counts of 32 bits.
///
/// # Safety
///
/// That of `list`.
unsafe fn node_list(first: *const u32, count: u32) -> Vec<u32> {
    // SAFETY: by the condition above.
    unsafe { list(first, usize::try_from(count).unwrap_or_default()) }.to_vec()
}

unsafe extern "C" fn on_deliver(
    _handle: u64,
    _group: *const CpgName,
    node: u32,
    pid: u32,
    data: *mut c_void,
    len: usize,
) {
    // SAFETY: the library gives the address and the length of what came, for this call.
    let data: &[u8] = unsafe { list(data.cast::<u8>(), len) };
    let me = INBOX.with_borrow(|inbox| inbox.me);
    let from = Address { node, pid };
    hear(Heard::Cpg(incoming(me, from, data, CPG_BODY_LEN_MAX)));
}

unsafe extern "C" fn on_confchg(
    _handle: u64,
    _group: *const CpgName,
    members: *const CpgAddress,
    members_count: usize,
    left: *const CpgAddress,
    left_count: usize,
    joined: *const CpgAddress,
    joined_count: usize,
) {
    // SAFETY: the library gives three lists with their lengths, for this call.
    let (members, left, joined) = unsafe {
        (
            list(members, members_count),
            list(left, left_count),
            list(joined, joined_count),
        )
    };
    hear(Heard::Cpg(CpgEvent::Members {
        members: members.iter().map(CpgAddress::address).collect(),
        left: left.iter().map(CpgAddress::with_reason).collect(),
        joined: joined.iter().map(CpgAddress::with_reason).collect(),
    }));
}

unsafe extern "C" fn on_totem_confchg(_handle: u64, ring: CRingId, count: u32, nodes: *const u32) {
    hear(Heard::Cpg(CpgEvent::Ring {
        ring: ring.into(),
        // SAFETY: the library gives the list with its length, for this call.
        nodes: unsafe { node_list(nodes, count) },
    }));
}

unsafe extern "C" fn on_quorate(
    _handle: u64,
    is_quorate: u32,
    ring: CRingId,
    _count: u32,
    _nodes: *const u32,
) {
    hear(Heard::Quorum(QuorumEvent::Quorate {
        ring: ring.into(),
        is_quorate: is_quorate != 0,
    }));
}

unsafe extern "C" fn on_nodelist(
    _handle: u64,
    ring: CRingId,
    count: u32,
    nodes: *const u32,
    _joined_count: u32,
    _joined: *const u32,
    _left_count: u32,
    _left: *const u32,
) {
    hear(Heard::Quorum(QuorumEvent::Nodes {
        ring: ring.into(),
        // SAFETY: the library gives the list with its length, for this call.
        nodes: unsafe { node_list(nodes, count) },
    }));
}

impl CpgAddress {
    const fn address(&self) -> Address {
        Address {
            node: self.nodeid,
            pid: self.pid,
        }
    }

    const fn with_reason(&self) -> (Address, Reason) {
        // `cpg_reason_t`
        let reason = match self.reason {
            1 => Reason::Join,
            2 => Reason::Leave,
            3 => Reason::NodeDown,
            4 => Reason::NodeUp,
            5 => Reason::ProcessDown,
            other => Reason::Unknown(other),
        };
        (self.address(), reason)
    }
}

impl From<CRingId> for RingId {
    fn from(ring: CRingId) -> Self {
        Self {
            node: ring.nodeid,
            seq: ring.seq,
        }
    }
}

/// A library by its name; the loader looks for it where the system keeps such.
fn load(name: &'static str, package: &'static str) -> Result<Loaded, OpenError> {
    // SAFETY: what it runs when it is loaded or unloaded is corosync's, of the system's own
    // directories, and sets up logging; it relies on nothing of ours.
    let loaded = unsafe { Loaded::new(name) };
    loaded.map_err(|error| OpenError::NotInstalled {
        library: name,
        package,
        reason: reason(&error),
    })
}

/// What the loader says, which is behind what the crate says.
fn reason(error: &libloading::Error) -> String {
    use std::error::Error;
    let source = error.source();
    source.map_or_else(|| error.to_string(), ToString::to_string)
}

/// A library, while its functions are looked up.
struct Symbols {
    library: Loaded,
    file: &'static str,
}

impl Symbols {
    /// A function.
    ///
    /// # Safety
    ///
    /// `T` must be the type of the function of that name.
    unsafe fn find<T: Copy>(&self, name: &str) -> Result<T, OpenError> {
        // SAFETY: by the condition above.
        let symbol = unsafe { self.library.get::<T>(name) };
        symbol
            .map(|it| *it)
            .map_err(|error| OpenError::WrongLibrary {
                library: self.file,
                reason: reason(&error),
            })
    }
}

fn load_cpg() -> Result<Cpg, OpenError> {
    let library = load(LIBCPG, "libcpg4")?;
    let file = LIBCPG;
    let symbols = Symbols { library, file };
    // SAFETY: the types in `Cpg` are those of the functions in `corosync/cpg.h`. They are kept
    // together with the library, so they end no later than that.
    unsafe {
        Ok(Cpg {
            model_initialize: symbols.find("cpg_model_initialize")?,
            max_atomic_msgsize_get: symbols.find("cpg_max_atomic_msgsize_get")?,
            join: symbols.find("cpg_join")?,
            leave: symbols.find("cpg_leave")?,
            mcast_joined: symbols.find("cpg_mcast_joined")?,
            local_get: symbols.find("cpg_local_get")?,
            common: Common {
                finalize: symbols.find("cpg_finalize")?,
                fd_get: symbols.find("cpg_fd_get")?,
                dispatch: symbols.find("cpg_dispatch")?,
            },
            _library: symbols.library,
        })
    }
}

fn load_quorum() -> Result<QuorumLibrary, OpenError> {
    let library = load(LIBQUORUM, "libquorum5")?;
    let file = LIBQUORUM;
    let symbols = Symbols { library, file };
    // SAFETY: as for libcpg, with `corosync/quorum.h`.
    unsafe {
        Ok(QuorumLibrary {
            model_initialize: symbols.find("quorum_model_initialize")?,
            trackstart: symbols.find("quorum_trackstart")?,
            common: Common {
                finalize: symbols.find("quorum_finalize")?,
                fd_get: symbols.find("quorum_fd_get")?,
                dispatch: symbols.find("quorum_dispatch")?,
            },
            _library: symbols.library,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_installed_is_named() {
        let error = load("libcpg.so.999", "libcpg999")
            .err()
            .unwrap()
            .to_string();
        let expected = "libcpg.so.999 is not installed (Debian: libcpg999; libcpg.so.999: ";
        assert!(error.starts_with(expected), "{error}");
    }

    #[test]
    fn a_library_without_our_functions_is_the_wrong_one() {
        let file = "libc.so.6";
        let library = load(file, "libc6").unwrap();
        let symbols = Symbols { library, file };
        // SAFETY: `getpid` has that type; the other one does not exist.
        let (pid, join) = unsafe {
            (
                symbols.find::<unsafe extern "C" fn() -> c_int>("getpid"),
                symbols.find::<unsafe extern "C" fn() -> c_int>("cpg_join"),
            )
        };
        // SAFETY: it takes nothing, and changes nothing.
        let pid = unsafe { pid.unwrap()() };
        assert_eq!(u32::try_from(pid), Ok(std::process::id()));
        let error = join.err().unwrap().to_string();
        assert!(
            error.starts_with("libc.so.6 is not what it should be ("),
            "{error}"
        );
    }

    #[test]
    fn callbacks_leave_what_they_were_told() {
        let body = |envelope: &mut [u8; ENVELOPE_LEN]| {
            // SAFETY: the address and the length of what is borrowed for the call.
            unsafe {
                let data = envelope.as_mut_ptr().cast();
                on_deliver(0, std::ptr::null(), 7, 8, data, ENVELOPE_LEN);
            }
            INBOX.take().heard
        };
        let heard = body(&mut [0; ENVELOPE_LEN]);
        let from = Address { node: 7, pid: 8 };
        let len = ENVELOPE_LEN;
        let garbage = CpgEvent::Garbage { from, len };
        assert!(matches!(heard, Some(Heard::Cpg(event)) if event == garbage));
        let [left, joined] = [3, 5].map(|reason| CpgAddress {
            nodeid: 7,
            pid: 8,
            reason,
        });
        // SAFETY: an empty list, and two with one entry each.
        unsafe {
            let (name, none) = (std::ptr::null(), std::ptr::null());
            on_confchg(0, name, none, 0, &raw const left, 1, &raw const joined, 1);
        }
        let expected = CpgEvent::Members {
            members: Vec::new(),
            left: vec![(from, Reason::NodeDown)],
            joined: vec![(from, Reason::ProcessDown)],
        };
        assert!(matches!(INBOX.take().heard, Some(Heard::Cpg(event)) if event == expected));
    }

    #[test]
    fn names_are_copied_as_they_are() {
        let name = cpg_name("plone");
        assert_eq!(name.length, 5);
        assert_eq!(&name.value[..6], b"plone\0");
    }
}
