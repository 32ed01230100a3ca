//! Owns the tests of what an array keeps of its disks beside their roles.

use corebay_core::{
    arena::Hugepages,
    buffer::Buffer,
    disk::{Disk, Durability, ram::RamMedium},
    units::{BlockSize, Lba},
};
use corebay_raid::{Patience, array::Array};

use super::*;

/// Of two disks.
pub fn plan_of_a_mirror() -> ArrayPlan {
    ArrayPlan {
        name: "m".into(),
        level: Level::Mirrored,
        roles: 2,
        strip_bytes: 64 << 10,
        consistency: Consistency::Journal,
        zone_bytes: None,
        create: true,
        pace: Pace::default(),
        scrub: None,
        patience: Patience {
            deadline: Duration::from_secs(7),
            ..Patience::default()
        },
        uuid: None,
        as_found: false,
        lose: Vec::new(),
    }
}

/// A mirror of disks in memory with a spare, and what happens to it while it is open.
fn mirror<F: Future<Output = ()> + 'static>(
    then: impl FnOnce(ArrayMedium, Array<PlainDisk>, BufferPool) -> F + 'static,
) {
    let plan = plan_of_a_mirror();
    let disk = |name: &str| {
        let medium = RamMedium::new(BlockSize::B4096, 8192).unwrap();
        (name.to_owned(), Some(PlainMedium::Ram(medium)))
    };
    let bytes = 2 * plan.scratch_bytes();
    let mut arena = Arena::new(bytes, Hugepages::Off).unwrap();
    let pool = BufferPool::new(arena.take(bytes).unwrap(), SCRATCH_WAITERS);
    let own = pool.clone();
    let ended = run_here(&pool, move |devices| async move {
        let finding = Finding {
            plan: plan.clone(),
            members: vec![disk("a"), disk("b")],
            spares: vec![disk("s")],
            others: Vec::new(),
            running: Vec::new(),
            making: Making::new(&plan, ["a", "b"].map(str::to_owned).iter()),
        };
        let found = finding.make_new(&devices, &own).await?;
        let medium = found.into_medium(&plan, Vec::new());
        assert_eq!(medium.assembled().patience(), plan.patience);
        let named: Vec<Named> = medium.members().into_iter().flatten().collect();
        let disks = open_all(&devices, &named)?.into_iter().map(Some).collect();
        let array = Array::open(&medium.assembled(), disks, &devices.reactor, &own);
        then(medium, array.expect("memory"), own).await;
        Ok(())
    });
    ended.unwrap();
}

fn another(name: &str) -> Named {
    let medium = RamMedium::new(BlockSize::B4096, 8192).unwrap();
    Named {
        name: name.to_owned(),
        medium: PlainMedium::Ram(medium),
    }
}

#[test]
fn a_spare_whose_drive_returns_is_a_spare_again() {
    mirror(|medium, _array, _pool| async move {
        let spares = || {
            let tending = medium.tending();
            let names = tending.spares.iter().map(|spare| spare.name.clone());
            names.collect::<Vec<_>>()
        };
        assert_eq!(spares(), ["s"]);
        // It was to step in, and could not.
        let spare = medium.tending().spares.remove(0);
        medium.tending().unfit_spares.push(spare.name.clone());
        medium.tending().refused.push((spare, "gone".into()));
        // Who never was one does not become one.
        medium.take_back_spare(&another("x"));
        assert!(spares().is_empty());
        medium.take_back_spare(&another("s"));
        assert_eq!(spares(), ["s"]);
        assert!(medium.tending().refused.is_empty());
        medium.take_back_spare(&another("s"));
        assert_eq!(spares(), ["s"]);
    });
}

#[test]
fn a_disk_that_has_something_to_end_is_told_by_its_name() {
    mirror(|medium, array, pool| async move {
        let returns = Order::Return {
            role: 1,
            by: another("b"),
        };
        assert_eq!(
            (medium.unquiet(None), medium.still_asked("b")),
            (None, None)
        );
        let mut buffer: Buffer = pool.allocate(4096).await;
        buffer.bytes_mut().fill(1);
        let written = array.write(Lba(0), &[buffer], Durability::Cached).await;
        written.unwrap();
        assert_eq!(
            (medium.unquiet(None), medium.still_asked("b")),
            (None, None)
        );
        assert!(!medium.has_to_wait(&returns));
        // Another disk has the role from now on: the former one is known until it is quiet.
        medium.set_member(1, another("c"));
        assert_eq!(medium.still_asked("b"), None);
        assert_eq!(medium.members()[1].as_ref().unwrap().name, "c");
    });
}

#[test]
fn what_could_not_be_taken_back_is_tried_again_while_its_role_is_free() {
    mirror(|medium, array, _pool| async move {
        let orders = || medium.tending().orders.len();
        let later = || medium.tending().returns.len();
        medium.tending().returns.push((5, 1, another("b")));
        medium.order_returns(Time(4));
        assert_eq!((later(), orders()), (1, 0));
        // Its role has somebody.
        medium.order_returns(Time(5));
        assert_eq!((later(), orders()), (0, 0));
        array.give_up(1).await.unwrap();
        medium.tending().returns.push((5, 1, another("b")));
        medium.order_returns(Time(5));
        assert_eq!((later(), orders()), (0, 1));
        // However much an operator has ordered.
        for _ in 0..2 * ORDERS_MAX {
            medium.order(Order::Grow, mpsc::channel().0);
        }
        assert_eq!(orders(), ORDERS_MAX);
        medium.take_back(1, another("b"));
        assert_eq!(orders(), ORDERS_MAX + 1);
    });
}
