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
        property::{self, Cc, Shn, Shst},
        status::Status,
    },
};

use crate::{
    client::{Session, SimController, may_not_happen},
    trace::event,
};

/// Who resets its controllers without end does nothing else.
const RESETS_MAX: usize = 64;

/// The longest pause between two admin commands, in microseconds.
const PAUSE_MICROS_MAX: u64 = 30_000;

/// How often who waits for an event looks whether there is still something to wait for.
pub const LOOK: Duration = Duration::from_millis(10);

/// The bytes of a Changed Namespace List.
const LIST_BYTES: u64 = 4096;

/// The longest time that a change may be unread where nothing disturbs.
pub const UNREAD_MAX: Duration = Duration::from_secs(2);

/// How often a host looks whether its controller is shut down.
const LOOKS_MAX: usize = 500;

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
    ShutDown,
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
        kinds.extend([Kind::Reset, Kind::ShutDown]);
    }
    let mut ended = 0;
    while !session.common.finishing.get() {
        let pause = rng.below(PAUSE_MICROS_MAX);
        session.reactor().sleep(Duration::from_micros(pause)).await;
        let kind = kinds[rng.below(kinds.len() as u64) as usize];
        let Some(controller) = session.controller() else {
            continue;
        };
        // Resets are rare, and once the work is done nothing may disturb the last check.
        let ends = matches!(kind, Kind::Reset | Kind::ShutDown);
        if ends && (session.is_checking() || !rng.once_in(8) || ended == RESETS_MAX) {
            continue;
        }
        ended += usize::from(ends);
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
        Kind::Log => log(session, controller, rng).await,
        Kind::EventMask => event_mask(session, controller, rng).await,
        Kind::CacheOff => cache_off(session, controller).await,
        Kind::Abort => {
            let queues = u64::from(controller.io_queues().max(1));
            let queue = u16::try_from(rng.below(queues)).unwrap_or(0);
            let nth = rng.below(16) as usize;
            controller.abort(queue, nth).await.map(drop)
        }
        Kind::Reset => reset(session, controller).await,
        Kind::ShutDown => {
            shut_down(session, controller).await?;
            reset(session, controller).await
        }
    }
}

/// Shuts the controller down: once it says that this is done, what was written before is durable.
async fn shut_down(session: &Session, controller: &SimController) -> Result<(), Error> {
    let association = session.association();
    let models = &session.common.models[session.node];
    let tickets: Vec<_> = models
        .iter()
        .map(|model| model.borrow_mut().begin(session.index))
        .collect();
    let outcome = wait_for_shutdown(session, controller).await;
    // What is detached is not flushed.
    let flushed = matches!(outcome, Ok(true)) && !session.common.plan.reloads();
    for (model, ticket) in models.iter().zip(tickets) {
        match flushed && association == session.association() {
            true => model.borrow_mut().end_flush(ticket),
            false => model.borrow_mut().end(ticket),
        }
    }
    outcome.map(drop)
}

/// True once the controller is shut down; false where another association has come meanwhile, or it takes
/// too long.
async fn wait_for_shutdown(session: &Session, controller: &SimController) -> Result<bool, Error> {
    let association = session.association();
    let cc = controller.property(property::CC, PropertySize::Four);
    let cc = Cc(u32::try_from(cc.await?).expect("a property of four bytes"));
    let down = u64::from(cc.with_shn(Shn::Normal).0);
    controller
        .set_property(property::CC, PropertySize::Four, down)
        .await?;
    for _ in 0..LOOKS_MAX {
        let csts = controller.csts().await?;
        if association != session.association() {
            return Ok(false);
        }
        if csts.shst() == Shst::Complete {
            return Ok(true);
        }
        session.reactor().sleep(LOOK).await;
    }
    Ok(false)
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
    let nsid = index as u32 + 1;
    let since = session.model(nsid).borrow().now();
    let found = controller.namespace(nsid).await?;
    let model = session.model(nsid).borrow();
    let sized = model.sizes_since(since).any(|size| size == found.blocks);
    let (capacity, used) = (found.identify.ncap.get(), found.identify.nuse.get());
    let wrong = !sized || used > capacity || capacity > found.blocks;
    let block_bytes = all_namespaces[index].block_size.bytes();
    if wrong || found.block_bytes as usize != block_bytes {
        let what = format!("namespace {} has a wrong size: {found:?}", index + 1);
        session.common.fail(what);
    }
    Ok(())
}

async fn log(session: &Session, controller: &SimController, rng: &mut Rng) -> Result<(), Error> {
    const PAGES: [(u8, u32, u64); 4] = [
        (lid::ERROR, 0, 64 * 4),
        (lid::SMART, ALL_NAMESPACES, 512),
        (lid::COMMAND_EFFECTS, 0, 4096),
        (lid::ANA, 0, 48),
    ];
    // Every other host reads of changes only where it is told to: no other read makes up for an event
    // that does not come.
    if session.index.is_multiple_of(2) && rng.once_in(5) {
        return changed_namespaces(session, controller).await;
    }
    let (page, nsid, bytes) = PAGES[rng.below(PAGES.len() as u64) as usize];
    controller.log_page(page, nsid, 0, bytes).await.map(drop)
}

/// Reads which namespaces have changed, and holds that against what the appliance has announced.
async fn changed_namespaces(session: &Session, controller: &SimController) -> Result<(), Error> {
    let notices = &session.common.notices[session.node];
    let association = session.association();
    let Some(of) = session.told_as() else {
        return Ok(());
    };
    let reading = notices.borrow_mut().begin_read(of);
    let page = controller.log_page(lid::CHANGED_NAMESPACES, ALL_NAMESPACES, 0, LIST_BYTES);
    let page = page.await;
    let same = association == session.association() && session.told_as() == Some(of);
    let (Ok(page), true) = (&page, same) else {
        notices.borrow_mut().lose_read(&reading);
        // It may have been sent again, to the next association.
        if let Some(of) = session.told_as() {
            let reading = notices.borrow_mut().begin_read(of);
            notices.borrow_mut().lose_read(&reading);
        }
        return page.map(drop);
    };
    let words = page.chunks_exact(4).map(|word| word.try_into());
    let list = words.map(|word| u32::from_le_bytes(word.unwrap_or_default()));
    let list: Vec<u32> = list.take_while(|nsid| *nsid != 0).collect();
    let read = notices
        .borrow_mut()
        .end_read(&reading, &list, session.reactor().now());
    let (host, node) = (session.index, session.node);
    let wrong = match read {
        Ok(unread) if unread > UNREAD_MAX && session.common.is_calm() => {
            Some(format!("reads of a change only after {unread:?}"))
        }
        read => read.err(),
    };
    if let Some(wrong) = wrong {
        let what = format!("host {host} of appliance {node} {wrong}");
        session.common.fail(what);
    }
    Ok(())
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
    let set = session.sets_mask();
    let before = controller.associations();
    controller.set_feature(feature, 0, mask).await?;
    let found = controller.feature(feature, 0).await?;
    let alone = session.sets_mask() == set + 1;
    if before == controller.associations() && found != mask && alone {
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

/// Wants to be told of changes, once for each association, and reads the log pages that the events of the
/// controllers name.
pub async fn read_of_events(session: Rc<Session>) {
    let mut wanted = None;
    while !session.common.finishing.get() {
        session.reactor().sleep(LOOK).await;
        let association = session.association();
        let Some(controller) = session.controller() else {
            continue;
        };
        if wanted != Some(association) {
            let result = want_events(&session, &controller).await;
            wanted = result.is_ok().then_some(association);
            tell(&session, Kind::EventMask, result);
        }
        while let Some((of, dword)) = session.next_event() {
            // What another one was told, this one has read as it began.
            if of == session.association() {
                read_of_event(&session, &controller, AsyncEvent::from_dword(dword)).await;
            }
        }
    }
}

/// Waits for the controllers' events. Nobody else does: one that is given up would take an event with it.
pub async fn take_events(session: Rc<Session>) {
    while !session.common.finishing.get() {
        let Some(controller) = session.controller() else {
            session.reactor().sleep(LOOK).await;
            continue;
        };
        // Another controller has other events.
        let goes_on = || {
            let current = session.controller();
            let same = current.is_some_and(|current| Rc::ptr_eq(&current, &controller));
            same && !session.common.finishing.get()
        };
        match wait_for_event(&session, &controller, goes_on).await {
            Some(Ok(dword)) => session.add_event(dword),
            Some(Err(_)) => {
                drop(controller);
                session.reactor().sleep(LOOK).await;
            }
            None => {}
        }
    }
}

/// The controller's next event; `None` where that is not waited for any more.
pub async fn wait_for_event(
    session: &Session,
    controller: &SimController,
    goes_on: impl Fn() -> bool,
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
        if !goes_on() {
            return None;
        }
    }
}

/// Wants to be told from now on, and reads what has changed until then.
async fn want_events(session: &Session, controller: &SimController) -> Result<(), Error> {
    let feature = fid::ASYNC_EVENT_CONFIGURATION;
    let wanted = async_event::NAMESPACE_ATTRIBUTE;
    session.sets_mask();
    controller.set_feature(feature, 0, wanted).await?;
    changed_namespaces(session, controller).await
}

/// Reads the log page that an event names, so that the next of its kind can be told.
async fn read_of_event(session: &Session, controller: &SimController, told: AsyncEvent) {
    let (host, node, page) = (session.index, session.node, told.lid);
    let words = [event::ADMIN, u64::from(page), node as u64];
    let trace = &session.common.trace;
    trace.note(words, || {
        format!("appliance {node} tells host {host} of log page {page:#x}")
    });
    let read = match told {
        AsyncEvent::NAMESPACE_CHANGED => {
            if let Some(of) = session.told_as() {
                let known = session.common.notices[node].borrow_mut().event(of);
                if let Err(wrong) = known {
                    let what = format!("host {host} of appliance {node} {wrong}");
                    session.common.fail(what);
                }
            }
            changed_namespaces(session, controller).await
        }
        _ => {
            let read = controller.log_page(page, ALL_NAMESPACES, 0, 64);
            read.await.map(drop)
        }
    };
    tell(session, Kind::Log, read);
}
