//! Owns the start of the pools: they are opened side by side.
//!
//! Invariants:
//! - The start waits a bounded time. A pool whose disk has not answered by then is told of as being opened;
//!   once it is open, it shows its exports by itself.
//! - A pool that is being opened has its turn: orders to it wait until their deadlines.
//! - Of copies of one pool the first one of the configuration is opened, where its disk answers: never the
//!   one that is quicker.

use std::{
    cell::{Cell, RefCell},
    rc::Rc,
    time::Duration,
};

use corebay_core::{buffer::BufferPool, units::Time};
use tracing::warn;

use super::{
    KnownPool, Opening,
    home::{Home, KeptExport, NO_MEMORY, OpenPool, kept_exports},
};

/// How long a start waits for pools. Hosts that come before a pool is open find its namespaces missing, and
/// are told of them later.
pub const START_WAIT: Duration = Duration::from_secs(30);

/// How long others are waited for that may be of the same identity.
const LABELS_WAIT: Duration = Duration::from_secs(2);

/// How often it is looked whether others have come further.
const PAUSE: Duration = Duration::from_millis(1);

/// Why a pool is not there yet.
const OPENING: &str = "it is being opened, and its disk has not answered yet; once that does, it is there by \
    itself";

/// A start that is under way.
struct Start {
    /// The pools, in the order of the configuration.
    pools: RefCell<Vec<Begun>>,
    /// What is opened from now on is late.
    is_over: Cell<bool>,
}

/// How far a pool is.
#[derive(Clone, Default)]
struct Begun {
    /// Whose label its disk has; outside, whether it was looked at.
    label: Option<Option<[u8; 16]>>,
    /// It is open, or known not to open.
    has_ended: bool,
}

impl Start {
    /// Whether one that comes before this one is to be waited for.
    fn is_behind(&self, index: usize, may_still_be_looked_at: bool) -> bool {
        let pools = self.pools.borrow();
        let Some(own) = pools[index].label.flatten() else {
            return false;
        };
        pools[..index].iter().any(|other| {
            !other.has_ended
                && match other.label {
                    None => may_still_be_looked_at,
                    Some(label) => label == Some(own),
                }
        })
    }

    fn has_ended(&self, index: usize) -> bool {
        self.pools.borrow()[index].has_ended
    }
}

impl Home {
    /// Opens the pools of the start; what they say is exported, of those that are open in time. One that
    /// cannot be opened is told of, and does not keep the others from hosts.
    pub async fn open_all(
        self: &Rc<Self>,
        openings: Vec<Opening>,
        wait: Duration,
    ) -> Vec<KeptExport> {
        let places: Vec<String> = openings.iter().map(|opening| opening.on.clone()).collect();
        let start = Rc::new(Start {
            pools: RefCell::new(vec![Begun::default(); openings.len()]),
            is_over: Cell::new(false),
        });
        let now = self.core.reactor.now();
        for (index, opening) in openings.into_iter().enumerate() {
            self.book.pools().push(KnownPool {
                name: opening.name.clone(),
                on: opening.on.clone(),
                problem: Some(OPENING.to_owned()),
                is_opening: true,
                added: opening.added,
            });
            // Where there is not enough for all, the first ones have it.
            let memory = self.memory.borrow_mut().pop();
            let (home, start) = (self.clone(), start.clone());
            let looked = now.plus(LABELS_WAIT.min(wait / 2));
            self.core.spawn_control(async move {
                home.open_at_start((&start, index), opening, memory, looked)
                    .await;
            });
        }
        let all = 0..places.len();
        while !all.clone().all(|index| start.has_ended(index))
            && self.core.reactor.now() < now.plus(wait)
        {
            self.core.reactor.sleep(PAUSE).await;
        }
        start.is_over.set(true);
        for index in all.filter(|index| !start.has_ended(*index)) {
            warn!(on = places[index], "no pool yet: {OPENING}");
        }
        // What two of them claim is the first one's.
        let place = |pool: &Rc<OpenPool>| places.iter().position(|on| *on == pool.on);
        let mut pools = self.pools.borrow_mut();
        pools.sort_by_key(place);
        let in_time = pools
            .iter()
            .filter(|pool| place(pool).is_some_and(|index| start.has_ended(index)));
        in_time.flat_map(kept_exports).collect()
    }

    async fn open_at_start(
        &self,
        (start, index): (&Start, usize),
        opening: Opening,
        memory: Option<BufferPool>,
        looked: Time,
    ) {
        let _turn = self.turns.of(&opening.on).await;
        let opened = match &memory {
            None => Err(NO_MEMORY.to_owned()),
            Some(memory) => {
                let label = self.label_by(&opening, memory).await;
                start.pools.borrow_mut()[index].label = Some(label.map(|label| label.uuid));
                while start.is_behind(index, self.core.reactor.now() < looked) {
                    self.core.reactor.sleep(PAUSE).await;
                }
                self.open_in(&opening, memory).await
            }
        };
        match opened {
            Ok(pool) => {
                if let Err(error) = self.first_volume(&pool, &opening).await {
                    warn!("pool \"{}\": its first volume: {error}", opening.name);
                }
                if start.is_over.get() {
                    // The main thread waits for what is shown at the start, and answers nobody before.
                    while !self.is_shown.get() {
                        self.core.reactor.sleep(PAUSE).await;
                    }
                    self.attach_kept_on(&opening.on).await;
                }
            }
            Err(problem) => {
                self.memory.borrow_mut().extend(memory);
                self.could_not_open(opening, problem);
            }
        }
        start.pools.borrow_mut()[index].has_ended = true;
    }

    /// Notes that a pool is not available, and why.
    fn could_not_open(&self, opening: Opening, problem: String) {
        warn!("pool \"{}\" is not available: {problem}", opening.name);
        let mut known = self.book.pools();
        if let Some(known) = known.iter_mut().find(|known| known.on == opening.on) {
            known.problem = Some(problem);
            known.is_opening = false;
        }
        self.closed.borrow_mut().push(opening);
    }
}
