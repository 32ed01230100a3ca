//! What hosts do beside their I/O: they ask their controllers, set features, take events, abort
//! commands and reset controllers.
//!
//! Invariant: nothing here keeps a controller for longer than one command, but the wait for an event,
//! which ends with the controller or the world.

use std::{future::Future, pin::pin, rc::Rc, task::Poll, time::Duration};

use corebay_core::rng::Rng;
use corebay_nvme::{
    fabrics::Error,
    spec::{
        event::AsyncEvent,
        fabrics::PropertySize,
        feature::{async_event, fid, volatile_write_cache},
        identify::controller::vwc,
        log::lid,
        property::{self, Cc},
        status::Status,
    },
};

use crate::{
    client::{Session, SimController, may_not_happen},
    trace::event,
};

/// The longest pause between two admin commands, in microseconds.
const PAUSE_MICROS_MAX: u64 = 30_000;

/// How often who waits for an event looks whether there is still something to wait for.
const LOOK: Duration = Duration::from_millis(10);

/// A namespace identifier that means all.
const ALL_NAMESPACES: u32 = u32::MAX;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Identify,
    Namespaces,
    Namespace,
    Log,
    EventMask,
    CacheOff,
    Abort,
    Reset,
}

/// One admin command after the other, until the world ends.
pub async fn administrate(session: Rc<Session>, mut rng: Rng) {
    let workload = session.common.plan.workload;
    let mut kinds = Vec::new();
    if workload.admin {
        kinds.extend([
            Kind::Identify,
            Kind::Namespaces,
            Kind::Namespace,
            Kind::Log,
            Kind::EventMask,
            Kind::CacheOff,
        ]);
    }
    if workload.aborts {
        kinds.extend([Kind::Abort; 6]);
    }
    if workload.resets {
        kinds.push(Kind::Reset);
    }
    while !session.common.finishing.get() {
        let pause = rng.below(PAUSE_MICROS_MAX);
        session.reactor().sleep(Duration::from_micros(pause)).await;
        let kind = kinds[rng.below(kinds.len() as u64) as usize];
        let Some(controller) = session.controller() else {
            continue;
        };
        // Resets are rare, and once the work is done nothing may disturb the last check.
        if kind == Kind::Reset && (session.is_checking() || !rng.once_in(8)) {
            continue;
        }
        let result = ask(&session, &controller, kind, &mut rng).await;
        drop(controller);
        tell(&session, kind, result);
    }
}

fn tell(session: &Session, kind: Kind, result: Result<(), Error>) {
    let (host, node) = (session.index, session.node);
    let words = [event::ADMIN, kind as u64, u64::from(result.is_ok())];
    let trace = &session.common.trace;
    trace.note(words, || {
        format!("host {host} asks appliance {node} {kind:?}: {result:?}")
    });
    let Err(error) = result else { return };
    // Who turns the cache off has it flushed.
    let weak = || session.common.plan.weak_namespace(node);
    let place = (kind == Kind::CacheOff).then(weak).flatten();
    // A namespace that is detached meanwhile is one that the controller does not know.
    let away = session.common.plan.reloads() && matches!(error, Error::Controller(_));
    let limit =
        matches!(error, Error::Status(status) if status.same_as(Status::ABORT_LIMIT_EXCEEDED));
    if !away && !limit && may_not_happen(&session.common, place, &error) {
        let what = format!("host {host} asks appliance {node} {kind:?}: {error}");
        session.common.fail(what);
    }
}

async fn ask(
    session: &Session,
    controller: &SimController,
    kind: Kind,
    rng: &mut Rng,
) -> Result<(), Error> {
    match kind {
        Kind::Identify => identify(session, controller).await,
        Kind::Namespaces => namespaces(session, controller).await,
        Kind::Namespace => namespace(session, controller, rng).await,
        Kind::Log => log(controller, rng).await,
        Kind::EventMask => event_mask(session, controller, rng).await,
        Kind::CacheOff => cache_off(session, controller).await,
        Kind::Abort => {
            let queues = u64::from(controller.io_queues().max(1));
            let queue = u16::try_from(rng.below(queues)).unwrap_or(0);
            let nth = rng.below(16) as usize;
            controller.abort(queue, nth).await.map(drop)
        }
        Kind::Reset => reset(session, controller).await,
    }
}

/// Resets the controller, and waits until it says that this is done. No I/O queue is left then.
async fn reset(session: &Session, controller: &SimController) -> Result<(), Error> {
    let before = session.association();
    let disabled = u64::from(Cc::default().0);
    controller
        .set_property(property::CC, PropertySize::Four, disabled)
        .await?;
    loop {
        let csts = controller.csts().await?;
        if before != session.association() {
            return Ok(());
        }
        if !csts.rdy() {
            session.disabled.set(Some(before));
            return Ok(());
        }
        session.reactor().sleep(LOOK).await;
    }
}

/// The controller says whether there is a volatile write cache: what a host then does not flush may be
/// lost.
async fn identify(session: &Session, controller: &SimController) -> Result<(), Error> {
    let told = controller.identify().await?.vwc & vwc::PRESENT != 0;
    let volatile = session.namespaces().iter().any(|each| each.volatile_cache);
    if volatile && !told && !session.common.plan.reloads() {
        let node = session.node;
        let what = format!("appliance {node} says that it has no volatile write cache");
        session.common.fail(what);
    }
    Ok(())
}

async fn namespaces(session: &Session, controller: &SimController) -> Result<(), Error> {
    let found = controller.active_namespaces().await?;
    let all: Vec<u32> = (1..).take(session.namespaces().len()).collect();
    if found != all && !session.common.plan.reloads() {
        let node = session.node;
        let what = format!("appliance {node} lists namespaces {found:?} instead of {all:?}");
        session.common.fail(what);
    }
    Ok(())
}

async fn namespace(
    session: &Session,
    controller: &SimController,
    rng: &mut Rng,
) -> Result<(), Error> {
    let all_namespaces = session.namespaces();
    let index = rng.below(all_namespaces.len() as u64) as usize;
    let found = controller.namespace(index as u32 + 1).await?;
    let wanted = (
        all_namespaces[index].blocks,
        all_namespaces[index].block_size.bytes(),
    );
    if (found.blocks, found.block_bytes as usize) != wanted {
        let what = format!("namespace {} has a wrong size: {found:?}", index + 1);
        session.common.fail(what);
    }
    Ok(())
}

async fn log(controller: &SimController, rng: &mut Rng) -> Result<(), Error> {
    const PAGES: [(u8, u32, u64); 5] = [
        (lid::ERROR, 0, 64 * 4),
        (lid::SMART, ALL_NAMESPACES, 512),
        (lid::CHANGED_NAMESPACES, ALL_NAMESPACES, 4096),
        (lid::COMMAND_EFFECTS, 0, 4096),
        (lid::ANA, 0, 48),
    ];
    let (page, nsid, bytes) = PAGES[rng.below(PAGES.len() as u64) as usize];
    controller.log_page(page, nsid, 0, bytes).await.map(drop)
}

/// Sets which events it wants, and reads it back.
async fn event_mask(
    session: &Session,
    controller: &SimController,
    rng: &mut Rng,
) -> Result<(), Error> {
    let mask = match rng.once_in(2) {
        true => async_event::NAMESPACE_ATTRIBUTE,
        false => async_event::NAMESPACE_ATTRIBUTE | async_event::ANA_CHANGE,
    };
    let feature = fid::ASYNC_EVENT_CONFIGURATION;
    let before = controller.associations();
    controller.set_feature(feature, 0, mask).await?;
    let found = controller.feature(feature, 0).await?;
    if before == controller.associations() && found != mask {
        let what = format!("the event configuration is {found:#x} after it was set to {mask:#x}");
        session.common.fail(what);
    }
    Ok(())
}

/// Turns the volatile write cache off: what is written from then on is durable.
async fn cache_off(session: &Session, controller: &SimController) -> Result<(), Error> {
    if session.namespaces().iter().all(|each| !each.volatile_cache) {
        return Ok(());
    }
    let before = controller.associations();
    session.cache_off.set(None);
    let value = !volatile_write_cache::ENABLE & 1;
    controller
        .set_feature(fid::VOLATILE_WRITE_CACHE, 0, value)
        .await?;
    if before == controller.associations() {
        session.cache_off.set(Some(session.association()));
    }
    Ok(())
}

/// Takes the controllers' events, and reads the log pages that they name.
pub async fn take_events(session: Rc<Session>) {
    while !session.common.finishing.get() {
        let Some(controller) = session.controller() else {
            session.reactor().sleep(LOOK).await;
            continue;
        };
        let told = wait_for_event(&session, &controller).await;
        let page = match told {
            Some(Ok(dword)) => AsyncEvent::from_dword(dword).lid,
            Some(Err(_)) => {
                drop(controller);
                session.reactor().sleep(LOOK).await;
                continue;
            }
            None => continue,
        };
        let node = session.node;
        let words = [event::ADMIN, u64::from(page), node as u64];
        let trace = &session.common.trace;
        trace.note(words, || {
            format!("appliance {node} tells of log page {page:#x}")
        });
        let bytes = if page == lid::CHANGED_NAMESPACES {
            4096
        } else {
            64
        };
        let read = controller.log_page(page, ALL_NAMESPACES, 0, bytes).await;
        drop(controller);
        tell(&session, Kind::Log, read.map(drop));
    }
}

/// The controller's next event; `None` where the session has another controller by now, or ends.
async fn wait_for_event(
    session: &Session,
    controller: &Rc<SimController>,
) -> Option<Result<u32, Error>> {
    let mut event = pin!(controller.event());
    loop {
        let mut timer = session.reactor().sleep(LOOK);
        let told = std::future::poll_fn(|context| {
            if let Poll::Ready(told) = event.as_mut().poll(context) {
                return Poll::Ready(Some(told));
            }
            pin!(&mut timer).poll(context).map(|()| None)
        })
        .await;
        if told.is_some() {
            return told;
        }
        let current = session.controller();
        let same = current.is_some_and(|current| Rc::ptr_eq(&current, controller));
        if !same || session.common.finishing.get() {
            return None;
        }
    }
}
