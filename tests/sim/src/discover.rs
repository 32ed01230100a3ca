//! A host that keeps a discovery controller of an appliance: it wants to be told of changes, and reads the
//! discovery log when it connects and after each event, and at no other time.
//!
//! Invariant: what it reads, and when it is told, goes to the appliance's [`Offers`](crate::offer::Offers).

use std::{net::SocketAddr, rc::Rc};

use corebay_nvme::{
    fabrics::{Controller, ControllerOptions, DiscoveryLog, DiscoveryRecord, Error, Recovery},
    spec::{
        event::AsyncEvent,
        feature::{async_event, fid},
        log::subtype,
        nqn::Nqn,
    },
};

use crate::{
    admin::{LOOK, UNREAD_MAX, wait_for_event},
    client::{Session, SimController, may_not_happen},
    node::{referral, second_subsystem, subsystem},
    offer::{Informed, Offer},
    trace::event,
};

/// So many changes amid a read make the host give it up.
const CHANGES_MAX: usize = 8;

/// Keeps one until the world ends.
pub async fn keep_informed(session: Rc<Session>) {
    while !session.common.finishing.get() {
        let connected = Controller::connect(&session.host, options(&session)).await;
        let outcome = match connected {
            Ok(controller) => be_informed(&session, controller).await,
            Err(error) => Err(error),
        };
        if let Err(error) = outcome {
            if may_not_happen(&session.common, None, &error) {
                let (host, node) = (session.index, session.node);
                let what = format!("host {host}, discovering appliance {node}: {error}");
                session.common.fail(what);
            }
            session.reactor().sleep(LOOK).await;
        }
    }
}

fn options(session: &Session) -> ControllerOptions {
    ControllerOptions {
        subsystem: Nqn::discovery(),
        io_queues: 0,
        recovery: Recovery::None,
        ..session.options()
    }
}

/// Until the controller is lost, or the world ends.
async fn be_informed(session: &Session, controller: SimController) -> Result<(), Error> {
    let of = (session.index, controller.facts()?.cntlid);
    let offers = &session.common.offers[session.node];
    offers.borrow_mut().begin_to_want(of);
    session.informed.set(Some(of));
    let outcome = listen(session, &controller, of).await;
    session.informed.set(None);
    offers.borrow_mut().leave(of);
    outcome?;
    controller.shutdown().await
}

async fn listen(session: &Session, controller: &SimController, of: Informed) -> Result<(), Error> {
    let (feature, wanted) = (
        fid::ASYNC_EVENT_CONFIGURATION,
        async_event::DISCOVERY_LOG_CHANGE,
    );
    controller.set_feature(feature, 0, wanted).await?;
    session.common.offers[session.node].borrow_mut().want(of);
    read(session, controller, of).await?;
    let goes_on = || !session.common.finishing.get();
    while let Some(told) = wait_for_event(session, controller, goes_on).await {
        let told = AsyncEvent::from_dword(told?);
        let known = session.common.offers[session.node].borrow_mut().event(of);
        if told != AsyncEvent::DISCOVERY_LOG_CHANGE {
            fail(session, &format!("is told {told:?}"));
        } else if let Err(wrong) = known {
            fail(session, &wrong);
        }
        read(session, controller, of).await?;
    }
    Ok(())
}

fn fail(session: &Session, what: &str) {
    let (host, node) = (session.index, session.node);
    let what = format!("host {host}, discovering appliance {node}, {what}");
    session.common.fail(what);
}

/// Reads the log, and holds it against what was offered meanwhile.
async fn read(session: &Session, controller: &SimController, of: Informed) -> Result<(), Error> {
    let offers = &session.common.offers[session.node];
    let reading = offers.borrow().begin_read(of);
    let log = match controller.discovery_log().await {
        // It changed each time.
        Err(Error::Controller(_)) if offers.borrow().changed_often(&reading, CHANGES_MAX) => {
            return Ok(());
        }
        log => log?,
    };
    note(session, &log);
    let address = session.common.targets[session.node];
    let found = sorted(log.records.iter().map(Entry::from));
    let shows = |offer: &Offer| found == entries(session, offer, address);
    let now = session.reactor().now();
    let ended = offers
        .borrow_mut()
        .end_read(&reading, log.generation, now, shows);
    match ended {
        Ok(unread) if unread > UNREAD_MAX && session.common.is_calm() => {
            fail(session, &format!("reads of a change only after {unread:?}"));
        }
        Ok(_) => {}
        Err(wrong) => fail(session, &format!("{wrong}: {found:?}")),
    }
    Ok(())
}

fn note(session: &Session, log: &DiscoveryLog) {
    let (host, node) = (session.index, session.node);
    let (generation, count) = (log.generation, log.records.len());
    let words = [event::ADMIN, generation, count as u64];
    session.common.trace.note(words, || {
        format!("host {host} reads {count} records of generation {generation} of appliance {node}")
    });
}

/// A record of the log, but for what is the same in all.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Entry {
    kind: u8,
    subsystem: String,
    address: String,
    service: String,
}

impl Entry {
    fn new(kind: u8, subsystem: &Nqn, address: SocketAddr) -> Self {
        Self {
            kind,
            subsystem: subsystem.as_str().to_owned(),
            address: address.ip().to_string(),
            service: address.port().to_string(),
        }
    }
}

impl From<&DiscoveryRecord> for Entry {
    fn from(record: &DiscoveryRecord) -> Self {
        Self {
            kind: record.entry.subtype,
            subsystem: record.subnqn.clone(),
            address: record.traddr.clone(),
            service: record.trsvcid.clone(),
        }
    }
}

fn sorted(entries: impl Iterator<Item = Entry>) -> Vec<Entry> {
    let mut all: Vec<_> = entries.collect();
    all.sort();
    all
}

/// What the host has to be told of an offer.
fn entries(session: &Session, offer: &Offer, address: SocketAddr) -> Vec<Entry> {
    let discovery = Nqn::discovery();
    let own = Entry::new(subtype::NVM, &subsystem(session.node), address);
    let mut all = vec![
        Entry::new(subtype::CURRENT_DISCOVERY, &discovery, address),
        own,
    ];
    if offer.second.is_some_and(|whom| whom.admits(session.index)) {
        let second = second_subsystem(session.node);
        all.push(Entry::new(subtype::NVM, &second, address));
    }
    let referrals = (0..offer.referrals).map(referral);
    all.extend(referrals.map(|at| Entry::new(subtype::REFERRAL, &discovery, at)));
    sorted(all.into_iter())
}
