//! Whose turn it is to change a pool, and what is promised to orders that are under way.
//!
//! Invariants:
//! - A turn is of the disk or array that a pool lies on, or is to lie on: one that hangs holds up the orders
//!   to its own pool, and to no other.
//! - What all pools share (names, identities, numbers of namespaces) is promised to one order at a time.
//!   Nobody waits for a promise: who finds something promised is refused, or takes another.
//! - The turn of showing namespaces to hosts is held while no pool's disk is waited for.
//! - Who waits for a turn waits until its deadline, and a bounded number does.

use std::{
    cell::{Cell, RefCell},
    collections::BTreeMap,
    future::{Future, poll_fn},
    pin::pin,
    rc::Rc,
    task::Poll,
};

use corebay_core::{
    reactor::Reactor,
    sync::{Permit, Permits},
    units::Time,
};

use super::{
    home::Home,
    orders::{Place, What},
};
use crate::appliance::control::RpcError;

/// Orders that may wait for the turn of one pool.
const WAITERS_MAX: usize = 64;

/// What is no other's while an order that needs it is under way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Promised {
    /// A pool's name.
    Name(String),
    /// A pool's identity.
    Pool([u8; 16]),
    /// A namespace of a subsystem.
    Namespace(String, u32),
}

/// All turns, on the home core.
pub struct Turns {
    pools: RefCell<BTreeMap<String, Rc<PoolTurn>>>,
    promised: Rc<RefCell<Vec<Promised>>>,
    shown: Rc<Permits>,
}

struct PoolTurn {
    permits: Rc<Permits>,
    waiting: Cell<usize>,
}

/// It is kept for as long as this is there.
#[derive(Debug)]
pub struct Promise {
    of: Rc<RefCell<Vec<Promised>>>,
    what: Promised,
}

impl Drop for Promise {
    fn drop(&mut self) {
        let mut promised = self.of.borrow_mut();
        if let Some(at) = promised.iter().position(|what| *what == self.what) {
            promised.swap_remove(at);
        }
    }
}

/// Counts who waits.
struct Waiting<'t>(&'t Cell<usize>);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.set(self.0.get() - 1);
    }
}

impl Turns {
    /// Nobody has one yet.
    pub fn new() -> Self {
        Self {
            pools: RefCell::default(),
            promised: Rc::default(),
            shown: Permits::new(1, WAITERS_MAX),
        }
    }

    /// The turn of the pool on a disk.
    pub async fn of(&self, disk: &str) -> Permit {
        let turn = self.pool(disk);
        turn.permits.acquire(1).await
    }

    /// The same for an order.
    ///
    /// # Errors
    /// Where it does not come in time.
    async fn in_time(
        &self,
        reactor: &Reactor,
        disk: &str,
        deadline: Time,
    ) -> Result<Permit, RpcError> {
        let turn = self.pool(disk);
        if turn.waiting.get() == WAITERS_MAX {
            return Err(RpcError::refused(format!(
                "{WAITERS_MAX} orders wait for the pool on \"{disk}\" already: nothing was changed"
            )));
        }
        turn.waiting.set(turn.waiting.get() + 1);
        let _waiting = Waiting(&turn.waiting);
        let mut permit = pin!(turn.permits.acquire(1));
        let mut expiry = pin!(reactor.sleep_until(deadline));
        let permit = poll_fn(|context| match permit.as_mut().poll(context) {
            Poll::Ready(permit) => Poll::Ready(Some(permit)),
            Poll::Pending => expiry.as_mut().poll(context).map(|()| None),
        });
        // One that comes too late begins nothing either.
        let permit = permit.await.filter(|_| reactor.now() <= deadline);
        permit.ok_or_else(RpcError::too_late)
    }

    /// The turn of showing namespaces to hosts and taking them back.
    pub async fn of_showing(&self) -> Permit {
        self.shown.acquire(1).await
    }

    /// Promises something; `None` where it is promised already.
    pub fn promise(&self, what: Promised) -> Option<Promise> {
        let mut promised = self.promised.borrow_mut();
        if promised.contains(&what) {
            return None;
        }
        promised.push(what.clone());
        let of = self.promised.clone();
        Some(Promise { of, what })
    }

    /// Promises the name of a pool.
    ///
    /// # Errors
    /// Where another order is giving it to another pool.
    pub fn promise_name(&self, name: &str) -> Result<Promise, RpcError> {
        self.promise(Promised::Name(name.to_owned()))
            .ok_or_else(|| {
                RpcError::conflict(format!(
                    "another order is making, opening or renaming a pool \"{name}\""
                ))
            })
    }

    /// The numbers that are promised in a subsystem.
    pub fn promised_nsids(&self, nqn: &str) -> Vec<u32> {
        let promised = self.promised.borrow();
        let nsids = promised.iter().filter_map(|what| match what {
            Promised::Namespace(of, nsid) if of == nqn => Some(*nsid),
            _ => None,
        });
        nsids.collect()
    }

    fn pool(&self, disk: &str) -> Rc<PoolTurn> {
        let mut pools = self.pools.borrow_mut();
        // What nobody has or waits for is as good as new. Who waits keeps the turn, who has it a permit alone.
        pools.retain(|known, turn| {
            known == disk || Rc::strong_count(turn) > 1 || turn.permits.available() == 0
        });
        let turn = pools.entry(disk.to_owned()).or_insert_with(|| {
            Rc::new(PoolTurn {
                permits: Permits::new(1, WAITERS_MAX),
                waiting: Cell::new(0),
            })
        });
        turn.clone()
    }
}

impl Home {
    /// Waits for the turn of the pool that an order changes; `None` where there is none of that name.
    ///
    /// # Errors
    /// Where it does not come in time, or nothing says which pool it is.
    pub async fn turn_of(&self, what: &What, deadline: Time) -> Result<Option<Permit>, RpcError> {
        loop {
            let Some(disk) = self.disk_of(what)? else {
                return Ok(None);
            };
            let turn = self
                .turns
                .in_time(&self.core.reactor, &disk, deadline)
                .await?;
            // Names may have changed meanwhile.
            if self.disk_of(what)? == Some(disk) {
                return Ok(Some(turn));
            }
        }
    }

    /// What the pool lies on, or is to lie on, that an order changes.
    fn disk_of(&self, what: &What) -> Result<Option<String>, RpcError> {
        let known = |name: &str| {
            let open = self.find(name).map(|pool| pool.on.clone());
            open.or_else(|| {
                let pools = self.book.pools();
                let known = pools.iter().find(|known| known.name == name);
                known.map(|known| known.on.clone())
            })
        };
        Ok(match what.place() {
            Place::Disk(disk) => Some(disk.to_owned()),
            Place::Pool(name) => known(name),
            Place::Renamed(from, to) => known(from).or_else(|| known(to)),
            Place::Volume(name) => Some(self.place(name)?.0.on.clone()),
            Place::None => None,
        })
    }
}
