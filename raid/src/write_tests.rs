//! What a write reads, against the arithmetic.

use super::*;

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
