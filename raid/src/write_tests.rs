//! What a write reads, against the arithmetic.

use super::*;
use crate::{bed::Bed, geometry::Level};

fn set(members: &[usize]) -> Set {
    members.iter().copied().collect()
}

fn chosen(data: usize, parity: usize, touched: &[usize], absent: &[usize]) -> Option<Method> {
    let absent = set(absent);
    choose(data, parity, set(touched), absent, absent)
}

#[test]
fn healthy_writes_read_as_little_as_possible() {
    assert_eq!(chosen(4, 1, &[0, 1, 2, 3], &[]), Some(Method::Full));
    assert_eq!(chosen(4, 1, &[2], &[]), Some(Method::Modify));
    assert_eq!(chosen(4, 1, &[1, 2], &[]), Some(Method::Reconstruct));
    assert_eq!(chosen(2, 1, &[0], &[]), Some(Method::Reconstruct));
    assert_eq!(chosen(4, 2, &[0], &[]), Some(Method::Reconstruct));
    assert_eq!(chosen(8, 2, &[0], &[]), Some(Method::Modify));
}

#[test]
fn degraded_writes_go_around_what_is_missing() {
    // The strip that changes is missing: only its parity can hold it.
    assert_eq!(chosen(4, 1, &[0], &[0]), Some(Method::Reconstruct));
    // Another one is missing.
    assert_eq!(chosen(4, 1, &[0, 1, 2], &[3]), Some(Method::Modify));
    // Both.
    assert_eq!(chosen(4, 2, &[0], &[0, 3]), Some(Method::Restore));
    // The parity is missing.
    assert_eq!(chosen(4, 1, &[0], &[4]), Some(Method::DataOnly));
    assert_eq!(chosen(4, 1, &[0], &[0, 4]), None);
}

#[test]
fn what_cannot_be_read_is_no_loss_where_it_is_not_needed() {
    let none = Set::default();
    let method = choose(4, 1, set(&[0]), none, set(&[0]));
    assert_eq!(method, Some(Method::Reconstruct));
    assert_eq!(
        choose(4, 1, set(&[0]), none, set(&[3])),
        Some(Method::Modify)
    );
    assert_eq!(choose(4, 1, set(&[0]), none, set(&[0, 3])), None);
    let all = set(&[0, 1, 2, 3]);
    assert_eq!(choose(4, 1, all, none, set(&[0, 3])), Some(Method::Full));
}

/// As in `read_tests.rs`: the blank disk's rows would become part of the parity.
#[test]
fn what_a_role_has_nothing_of_yet_is_not_made_parity_of() {
    let bed = Bed::new(Level::Raid5, 4);
    bed.fill(7);
    let away = bed.array.assembled().geometry().role_of(0, 2);
    bed.replace(away);
    let (array, from) = (bed.array.clone(), bed.pool.try_allocate(4096).unwrap());
    let ends = bed.run(async move {
        let write = Write {
            band: Band {
                stripe: 0,
                rows: 0..4096,
                strips: 0..1,
            },
            payload: Payload::Host {
                from: one(from),
                start: 0,
            },
            durability: Durability::Cached,
        };
        let piece = Piece {
            stripe: 0,
            rows: 0..4096,
            touched: set(&[0]),
            durability: Durability::Cached,
            from: From::One(&write),
        };
        let (none, mut scratch) = (Set::default(), Scratch::new());
        let method = Method::Reconstruct;
        gather(&array.core, &piece, method, none, none, &mut scratch).await
    });
    assert_eq!(ends.unreadable, set(&[away]));
    assert!(ends.failed.is_empty());
}
