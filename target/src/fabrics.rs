//! Fabrics commands: Connect, Property Get and Set, Disconnect (Base 2.1, 6), and the end of an
//! association.
//!
//! Invariants:
//! - A host that may not connect learns nothing but that.
//! - While commands of a host's former association still execute on a disk, the host does not get a
//!   new one: an old write never lands upon a newer one.

use std::{net::SocketAddr, rc::Rc, sync::Arc, time::Duration};

use corebay_core::{buffer::Buffer, units::CoreId};
use corebay_nvme::spec::{
    command::SubmissionEntry,
    fabrics::{
        CNTLID_DYNAMIC, CNTLID_STATIC, Connect, ConnectData, ConnectInvalid, ConnectSuccess,
        PropertyGet, PropertySet, PropertySize, fctype,
    },
    nqn::Nqn,
    property::{self, CAP_CRMS_CRWMS, CAP_CSS_IOCSS, CAP_CSS_NVM, Cap, Cc, Crto, Vs},
    status::Status,
};
use tracing::{info, warn};
use zerocopy::FromBytes;

use crate::{
    controller::{Controller, Event, NewController, QueueRef},
    core::Core,
    environment::Environment,
    limits::{ADMIN_QUEUE_DEPTH_MAX, CNTLID_MAX, DRAIN_TIMEOUT, QUEUE_DEPTH_MIN},
    queue::{Binding, Done, Operation, Outcome, Prepared, Queue, Transfer, Wire},
    subsystem::Subsystem,
};

/// CAP.TO and CRTO.CRWMT: a controller is ready within this, in units of 500 ms.
const READY_TIMEOUT_500MS: u8 = 15;

/// The same as a duration.
const READY_TIMEOUT: Duration = Duration::from_millis(500 * READY_TIMEOUT_500MS as u64);

/// Byte offsets in Connect's submission queue entry and data, for Invalid Parameter Offset.
mod at {
    pub const QID: u16 = 42;
    pub const SQSIZE: u16 = 44;
    pub const CNTLID: u16 = 16;
    pub const SUBNQN: u16 = 256;
    pub const HOSTNQN: u16 = 512;
}

/// The specification's version that this target implements (VS).
pub const VERSION: Vs = Vs::V2_1;

/// Checks a fabrics command.
///
/// # Errors
/// The status to answer it with.
pub fn prepare<E: Environment, W: Wire>(
    queue: &Queue<E, W>,
    sqe: &SubmissionEntry,
) -> Result<Prepared<E>, Status> {
    let bound = queue.binding().is_some();
    let transfer = match sqe.fctype() {
        fctype::CONNECT if !bound => Transfer::FromHost(size_of::<ConnectData>()),
        fctype::CONNECT => return Err(Status::COMMAND_SEQUENCE_ERROR.with_dnr()),
        fctype::PROPERTY_GET | fctype::PROPERTY_SET | fctype::DISCONNECT if bound => Transfer::None,
        fctype::PROPERTY_GET | fctype::PROPERTY_SET | fctype::DISCONNECT => {
            return Err(Status::COMMAND_SEQUENCE_ERROR.with_dnr());
        }
        _ => return Err(Status::INVALID_OPCODE.with_dnr()),
    };
    Ok(Prepared {
        operation: Operation::Fabrics,
        transfer,
    })
}

/// Executes a fabrics command.
pub async fn execute<E: Environment, W: Wire>(
    queue: &Rc<Queue<E, W>>,
    sqe: &SubmissionEntry,
    data: Option<Buffer>,
) -> Outcome {
    match sqe.fctype() {
        fctype::CONNECT => match data {
            Some(data) => connect(queue, sqe, data).await,
            None => Done::status(Status::INTERNAL_ERROR).into(),
        },
        fctype::PROPERTY_GET => property_get(queue, sqe).into(),
        fctype::PROPERTY_SET => property_set(queue, sqe).into(),
        _ => disconnect(queue).into(),
    }
}

/// Why a Connect command is refused.
struct Refused {
    status: Status,
    detail: u32,
}

impl Refused {
    fn with(status: Status) -> Self {
        Self {
            status: status.with_dnr(),
            detail: 0,
        }
    }

    fn in_command(offset: u16) -> Self {
        let detail = ConnectInvalid::in_command(offset).to_dw0();
        Self {
            detail,
            ..Self::with(Status::CONNECT_INVALID_PARAMETERS)
        }
    }

    fn in_data(offset: u16) -> Self {
        let detail = ConnectInvalid::in_data(offset).to_dw0();
        Self {
            detail,
            ..Self::with(Status::CONNECT_INVALID_PARAMETERS)
        }
    }
}

/// A Connect command whose names were understood.
struct Request<M> {
    connect: Connect,
    host_nqn: Nqn,
    host_id: [u8; 16],
    cntlid: u16,
    subsystem: Arc<Subsystem<M>>,
}

async fn connect<E: Environment, W: Wire>(
    queue: &Rc<Queue<E, W>>,
    sqe: &SubmissionEntry,
    data: Buffer,
) -> Outcome {
    let request = match understand(queue, sqe, &data) {
        Ok(request) => request,
        Err(refused) => return refuse(refused),
    };
    let target = match choose_core(queue, &request) {
        Ok(target) => target,
        Err(refused) => return refuse(refused),
    };
    if target != queue.core.id() && queue.wire.hand_over(target, *sqe, data.bytes().to_vec()) {
        return Outcome::Moved;
    }
    let connected = if request.connect.qid == 0 {
        connect_admin(queue, request).await
    } else {
        connect_io(queue, request)
    };
    match connected {
        Ok(cntlid) => Done::with_result(u64::from(ConnectSuccess::new(cntlid).to_dw0())).into(),
        Err(refused) => refuse(refused),
    }
}

fn refuse(refused: Refused) -> Outcome {
    Done {
        result: u64::from(refused.detail),
        ..Done::status(refused.status)
    }
    .into()
}

fn understand<E: Environment, W: Wire>(
    queue: &Rc<Queue<E, W>>,
    sqe: &SubmissionEntry,
    data: &Buffer,
) -> Result<Request<E::Medium>, Refused> {
    let connect = Connect::from(sqe);
    if connect.recfmt != 0 {
        return Err(Refused::with(Status::CONNECT_INCOMPATIBLE_FORMAT));
    }
    let bytes = data.bytes();
    let Ok(data) = ConnectData::ref_from_bytes(&bytes) else {
        return Err(Refused::with(Status::INTERNAL_ERROR));
    };
    let host_nqn = Nqn::from_field(&data.hostnqn).map_err(|error| {
        info!(%error, "a host connects with a wrong host NQN");
        Refused::in_data(at::HOSTNQN)
    })?;
    let subnqn = Nqn::from_field(&data.subnqn).map_err(|_| Refused::in_data(at::SUBNQN))?;
    let local = queue.wire.local_address();
    let subsystem = queue
        .core
        .registry
        .find(&subnqn)
        .filter(|s| is_served(queue, s, local));
    let Some(subsystem) = subsystem else {
        info!(host = %host_nqn, subsystem = %subnqn, "a host asks for a subsystem that is not here");
        return Err(Refused::in_data(at::SUBNQN));
    };
    if !subsystem.admits(&host_nqn) {
        info!(host = %host_nqn, subsystem = %subnqn, "a host may not connect to this subsystem");
        return Err(Refused::with(Status::CONNECT_INVALID_HOST));
    }
    Ok(Request {
        connect,
        host_nqn,
        host_id: data.hostid,
        cntlid: data.cntlid.get(),
        subsystem,
    })
}

fn is_served<E: Environment, W>(
    queue: &Queue<E, W>,
    subsystem: &Subsystem<E::Medium>,
    local: Option<SocketAddr>,
) -> bool {
    let Some(local) = local else { return true };
    let (_, listens, _) = queue.core.registry.discovery_view();
    listens.iter().any(|listen| {
        let here = listen.address.port() == local.port()
            && (listen.address.ip().is_unspecified() || listen.address.ip() == local.ip());
        here && subsystem.is_served_at(listen)
    })
}

/// The core that the queue will live on: admin queues in turn, a controller's I/O queues side by
/// side from the core after its admin queue's.
fn choose_core<E: Environment, W: Wire>(
    queue: &Queue<E, W>,
    request: &Request<E::Medium>,
) -> Result<CoreId, Refused> {
    let cores = queue.core.count();
    if request.connect.qid == 0 {
        return Ok(CoreId(queue.core.registry.next_turn() % cores));
    }
    let controller = find_controller(request)?;
    Ok(CoreId(
        (controller.admin.0.0 + usize::from(request.connect.qid)) % cores,
    ))
}

fn find_controller<M>(request: &Request<M>) -> Result<Arc<Controller<M>>, Refused> {
    let controller = request.subsystem.controller(request.cntlid);
    let controller = controller.ok_or_else(|| Refused::in_data(at::CNTLID))?;
    if controller.host_nqn != request.host_nqn {
        return Err(Refused::in_data(at::HOSTNQN));
    }
    if controller.host_id != request.host_id {
        return Err(Refused::in_data(0));
    }
    Ok(controller)
}

async fn connect_admin<E: Environment, W: Wire>(
    queue: &Rc<Queue<E, W>>,
    request: Request<E::Medium>,
) -> Result<u16, Refused> {
    let Request {
        connect,
        host_nqn,
        host_id,
        cntlid,
        subsystem,
    } = request;
    let depth = connect.entries();
    if depth < u32::from(QUEUE_DEPTH_MIN) || depth > u32::from(ADMIN_QUEUE_DEPTH_MAX) {
        return Err(Refused::in_command(at::SQSIZE));
    }
    let wanted = match cntlid {
        CNTLID_DYNAMIC | CNTLID_STATIC => None,
        // No controller will ever have it, so asking again does not help.
        id if id == 0 || id > CNTLID_MAX => return Err(Refused::in_data(at::CNTLID)),
        id => Some(id),
    };
    wait_for_former(queue, &subsystem, &host_nqn, &host_id).await?;
    if !subsystem.admits(&host_nqn) || queue.core.registry.find(&subsystem.names.nqn).is_none() {
        // The configuration has changed while it waited.
        return Err(Refused::with(Status::CONNECT_INVALID_HOST));
    }
    let now = queue.core.reactor.now();
    let here = (queue.core.id(), queue.key);
    let made = subsystem.add_controller(wanted, |cntlid, features| {
        Controller::new(NewController {
            cntlid,
            subsystem: subsystem.clone(),
            host_nqn: host_nqn.clone(),
            host_id,
            keep_alive_ms: connect.kato,
            admin: here,
            started: now,
            features,
        })
    });
    let Ok(controller) = made else {
        let status = Status::CONNECT_CONTROLLER_BUSY;
        return Err(Refused {
            status,
            ..Refused::with(status)
        });
    };
    info!(
        host = %host_nqn, subsystem = %subsystem.names.nqn, cntlid = controller.cntlid,
        keep_alive_ms = connect.kato, core = %here.0, "a host connected"
    );
    let cntlid = controller.cntlid;
    if let Err(refused) = bind(queue, controller.clone(), &connect) {
        // The connection has ended while the command waited.
        end_association(
            &queue.core,
            &controller,
            "its connection ended before it began",
        );
        return Err(refused);
    }
    Ok(cntlid)
}

/// Waits until nothing of the same host's former associations executes any more.
async fn wait_for_former<E: Environment, W: Wire>(
    queue: &Rc<Queue<E, W>>,
    subsystem: &Subsystem<E::Medium>,
    host_nqn: &Nqn,
    host_id: &[u8; 16],
) -> Result<(), Refused> {
    #[cfg(corebay_fault)]
    if crate::fault::is(crate::fault::Fault::FormerNotAwaited) {
        return Ok(());
    }
    let reactor = &queue.core.reactor;
    let deadline = reactor.now().plus(DRAIN_TIMEOUT);
    while subsystem.is_host_quiescing(host_nqn, host_id) {
        if reactor.now() >= deadline {
            warn!(host = %host_nqn, "commands of a former association do not end");
            let status = Status::CONNECT_CONTROLLER_BUSY;
            return Err(Refused { status, detail: 0 });
        }
        reactor.sleep(Duration::from_millis(1)).await;
    }
    Ok(())
}

fn connect_io<E: Environment, W: Wire>(
    queue: &Rc<Queue<E, W>>,
    request: Request<E::Medium>,
) -> Result<u16, Refused> {
    let controller = find_controller(&request)?;
    let connect = request.connect;
    if !controller.lifecycle.accepts_io() || controller.has_ended() {
        return Err(Refused::with(Status::COMMAND_SEQUENCE_ERROR));
    }
    let granted = match controller.io_queues_granted() {
        0 => queue.core.limits.io_queues_max,
        granted => granted,
    };
    if controller.subsystem.is_discovery() || connect.qid > granted {
        return Err(Refused::in_command(at::QID));
    }
    let depth = connect.entries();
    if depth < u32::from(QUEUE_DEPTH_MIN) || depth > u32::from(queue.core.limits.queue_depth_max) {
        return Err(Refused::in_command(at::SQSIZE));
    }
    let cntlid = controller.cntlid;
    bind(queue, controller, &connect)?;
    Ok(cntlid)
}

fn bind<E: Environment, W: Wire>(
    queue: &Rc<Queue<E, W>>,
    controller: Arc<Controller<E::Medium>>,
    connect: &Connect,
) -> Result<(), Refused> {
    let counters = Arc::default();
    let queue_ref = QueueRef {
        qid: connect.qid,
        core: queue.core.id(),
        key: queue.key,
        counters: Arc::clone(&counters),
    };
    if queue.is_closed() || !controller.add_queue(queue_ref) {
        return Err(Refused::with(Status::COMMAND_SEQUENCE_ERROR));
    }
    controller.command_arrived(queue.core.reactor.now());
    queue.bind(Binding {
        qid: connect.qid,
        depth: connect.sqsize + 1,
        flow_control_disabled: connect.disables_sq_flow_control(),
        table: queue.core.table(controller.subsystem.id),
        share: queue.core.shares.of(&controller.host_nqn),
        controller,
        counters,
    });
    Ok(())
}

fn disconnect<E: Environment, W: Wire>(queue: &Rc<Queue<E, W>>) -> Done {
    use crate::queue::QueueControl;
    match queue.binding() {
        Some(binding) if binding.qid != 0 => {
            // It closes once this command, and those before it, were answered.
            queue.clone().drain();
            Done::SUCCESS
        }
        _ => Done::status(Status::INVALID_QUEUE_TYPE.with_dnr()),
    }
}

fn capabilities<E: Environment>(core: &Core<E>, discovery: bool) -> Cap {
    let depth = if discovery {
        ADMIN_QUEUE_DEPTH_MAX
    } else {
        core.limits.queue_depth_max
    };
    Cap::default()
        .with_mqes(depth - 1)
        .with_cqr(true)
        .with_to(READY_TIMEOUT_500MS)
        .with_css(CAP_CSS_NVM | CAP_CSS_IOCSS)
        .with_crms(CAP_CRMS_CRWMS)
}

fn property_get<E: Environment, W: Wire>(queue: &Queue<E, W>, sqe: &SubmissionEntry) -> Done {
    let Some(binding) = queue.binding().filter(|binding| binding.qid == 0) else {
        return Done::status(Status::INVALID_QUEUE_TYPE.with_dnr());
    };
    let command = PropertyGet::from(sqe);
    let controller = &binding.controller;
    let value = match (command.ofst, command.size) {
        (property::CAP, PropertySize::Eight) => {
            capabilities(&queue.core, controller.subsystem.is_discovery()).0
        }
        (property::VS, PropertySize::Four) => u64::from(VERSION.0),
        (property::CC, PropertySize::Four) => u64::from(controller.lifecycle.cc().0),
        (property::CSTS, PropertySize::Four) => u64::from(controller.lifecycle.csts().0),
        // CAP.NSSRS is clear: there is no subsystem reset.
        (property::NSSR, PropertySize::Four) => 0,
        (property::CRTO, PropertySize::Four) => {
            u64::from(Crto::default().with_crwmt(READY_TIMEOUT_500MS.into()).0)
        }
        _ => return Done::status(Status::INVALID_FIELD.with_dnr()),
    };
    Done::with_result(value)
}

fn property_set<E: Environment, W: Wire>(queue: &Rc<Queue<E, W>>, sqe: &SubmissionEntry) -> Done {
    let Some(binding) = queue.binding().filter(|binding| binding.qid == 0) else {
        return Done::status(Status::INVALID_QUEUE_TYPE.with_dnr());
    };
    let command = PropertySet::from(sqe);
    match (command.ofst, command.size) {
        (property::CC, PropertySize::Four) => {
            set_configuration(queue, binding, Cc(command.value as u32));
            Done::SUCCESS
        }
        (property::NSSR, PropertySize::Four) => Done::SUCCESS,
        _ => Done::status(Status::INVALID_FIELD.with_dnr()),
    }
}

fn set_configuration<E: Environment, W: Wire>(
    queue: &Rc<Queue<E, W>>,
    binding: &Binding<E>,
    new: Cc,
) {
    let controller = &binding.controller;
    let wanted = controller.lifecycle.configure(new);
    if wanted.reset {
        queue.forget_parked();
        let (controller, core) = (controller.clone(), queue.core.clone());
        queue
            .core
            .spawn_control(async move { reset(&core, &controller).await });
    }
    if let Some(shutdown) = wanted.shutdown {
        let shut_down = queue.clone();
        queue.core.spawn_control(async move {
            let Some(binding) = shut_down.binding() else {
                return;
            };
            let flushed = crate::io::flush(binding, None).await;
            if let Err(status) = flushed {
                warn!(host = %binding.controller.host_nqn, %status, "a flush at shutdown failed");
            }
            let lifecycle = &binding.controller.lifecycle;
            lifecycle.shutdown_ended(shutdown, flushed.is_ok());
        });
    }
}

/// Controller level reset: the I/O queues end, with all that they execute; then it is not ready.
async fn reset<E: Environment>(core: &Rc<Core<E>>, controller: &Arc<Controller<E::Medium>>) {
    #[cfg(corebay_fault)]
    if crate::fault::is(crate::fault::Fault::QueuesOutliveReset) {
        controller.reset_state();
        controller.lifecycle.reset_ended();
        return;
    }
    close_queues(core, controller, false, "the host resets its controller");
    let deadline = core.reactor.now().plus(READY_TIMEOUT);
    let io_queues = || controller.queues().iter().any(|queue| queue.qid != 0);
    while controller.is_quiescing() || io_queues() {
        if controller.has_ended() {
            return;
        }
        if core.reactor.now() >= deadline {
            // It is not reset while old writes may still land: the host hears that it failed.
            warn!(host = %controller.host_nqn, "a reset waits for commands that do not end");
            controller.lifecycle.reset_failed();
            return;
        }
        core.reactor.sleep(Duration::from_millis(1)).await;
    }
    controller.reset_state();
    controller.lifecycle.reset_ended();
}

fn close_queues<E: Environment>(
    core: &Core<E>,
    controller: &Controller<E::Medium>,
    admin_too: bool,
    why: &'static str,
) {
    for queue in controller.queues() {
        if admin_too || queue.qid != 0 {
            let key = queue.key;
            core.send(queue.core, move |core| {
                if let Some(queue) = core.queue(key) {
                    queue.close(why);
                }
            });
        }
    }
}

/// Ends an association: all its queues close, and its controller is forgotten.
pub fn end_association<E: Environment>(
    core: &Core<E>,
    controller: &Arc<Controller<E::Medium>>,
    why: &'static str,
) {
    if !controller.end() {
        return;
    }
    info!(
        host = %controller.host_nqn, subsystem = %controller.subsystem.names.nqn,
        cntlid = controller.cntlid, why, "an association ends"
    );
    close_queues(core, controller, true, why);
    controller.subsystem.retire_controller(controller);
}

/// Tells the hosts that keep a connection to the discovery subsystem that what it tells has changed.
pub fn tell_discovery<E: Environment>(core: &Core<E>) {
    for controller in core.registry.discovery().controllers() {
        report(core, &controller, Event::DiscoveryLogChanged);
    }
}

/// Reports an event to a controller's host, if it wants to know.
pub fn report<E: Environment>(core: &Core<E>, controller: &Controller<E::Medium>, event: Event) {
    if controller.raise(event) {
        let (home, key) = controller.admin;
        core.send(home, move |core| {
            if let Some(queue) = core.queue(key) {
                queue.deliver_events();
            }
        });
    }
}
