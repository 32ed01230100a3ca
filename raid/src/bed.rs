//! Arrays over ram disks for this crate's own tests, which look at what lies behind an array.

use std::{
    cell::{Cell, RefCell},
    pin::Pin,
    rc::Rc,
};

use corebay_core::{
    arena::Arena,
    buffer::BufferPool,
    disk::{
        Disk, Durability,
        ram::{RamDisk, RamMedium},
    },
    reactor::Reactor,
    rng::Rng,
    units::{BlockSize, CoreId, Lba, Time},
};

use crate::{
    array::{Array, Assembled},
    assemble::assemble,
    create::create,
    geometry::{Geometry, Level, Wish},
};

const SIZE: BlockSize = BlockSize::B4096;
const MEMBER_BYTES: u64 = 8 << 20;
/// What takes no longer than so many turns has not stopped for ever.
const TURNS_MAX: u64 = 300_000;

/// An array, and a clock that goes on by its turns.
pub(crate) struct Bed {
    pub(crate) array: Rc<Array<RamDisk>>,
    pub(crate) pool: BufferPool,
    pub(crate) reactor: Reactor,
    now: Cell<u64>,
}

impl Bed {
    pub(crate) fn new(level: Level, roles: usize) -> Self {
        let wish = Wish {
            strip_bytes: 16 << 10,
            journal_slots: 64,
            ..Wish::new(level, roles, SIZE)
        };
        let geometry = Geometry::new(wish, MEMBER_BYTES).unwrap();
        let bytes = Assembled::scratch_bytes(&geometry);
        let mut arena = Arena::lazy(bytes + (2 << 20)).unwrap();
        let scratch = BufferPool::new(arena.take(bytes).unwrap(), 512);
        let pool = BufferPool::new(arena.take(2 << 20).unwrap(), 64);
        let reactor = Reactor::new(CoreId(0), 64, Time(0));
        let disks: Vec<_> = (0..roles).map(|_| blank(&reactor)).collect();
        let (now, on) = (Cell::new(0), reactor.clone());
        let array = run(&reactor, &now, async move {
            let mut rng = Rng::from_seed(1);
            let made = create(&disks, wish, "bed", &[], &mut rng, &scratch).await;
            made.expect("an array");
            assemble(disks, None, &on, &scratch).await.unwrap().array
        });
        Self {
            array: Rc::new(array),
            pool,
            reactor,
            now,
        }
    }

    pub(crate) fn run<T: 'static>(&self, task: impl Future<Output = T> + 'static) -> T {
        run(&self.reactor, &self.now, task)
    }

    /// Writes the first stripe.
    pub(crate) fn fill(&self, byte: u8) {
        let array = self.array.clone();
        let bytes = array.assembled().geometry().stripe_bytes();
        let mut buffer = self.pool.try_allocate(bytes as usize).unwrap();
        buffer.bytes_mut().fill(byte);
        let write = async move { array.write(Lba(0), &[buffer], Durability::Cached).await };
        self.run(write).unwrap();
    }

    /// A role fails, and has a blank disk from now on, which has nothing of any stripe yet.
    pub(crate) fn replace(&self, role: usize) {
        let (array, pool) = (self.array.clone(), self.pool.clone());
        let disk = blank(&self.reactor);
        self.run(async move {
            array.give_up(role).await.unwrap();
            array.set_member(role, Some(disk));
            let replaced = array.replace(role, &mut Rng::from_seed(5), &pool).await;
            replaced.unwrap();
        });
    }
}

impl Drop for Bed {
    fn drop(&mut self) {
        self.reactor.tear_down();
    }
}

fn blank(reactor: &Reactor) -> RamDisk {
    let medium = RamMedium::new(SIZE, SIZE.blocks_in(MEMBER_BYTES)).unwrap();
    RamDisk::new(medium, reactor)
}

fn run<T: 'static>(
    reactor: &Reactor,
    now: &Cell<u64>,
    task: impl Future<Output = T> + 'static,
) -> T {
    let value = Rc::new(RefCell::new(None));
    let into = value.clone();
    let task: Pin<Box<dyn Future<Output = ()>>> = Box::pin(async move {
        let done = task.await;
        *into.borrow_mut() = Some(done);
    });
    assert!(reactor.spawn(task).is_ok(), "a free slot");
    for _ in 0..TURNS_MAX {
        if let Some(value) = value.take() {
            return value;
        }
        now.set(now.get() + 10_000);
        reactor.poll_once(Time(now.get()));
    }
    panic!("nothing moves any more");
}
