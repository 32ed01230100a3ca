//! The sizes that a namespace may have: what its operator gave it, and what he is about to give it.
//!
//! Invariant: of a change whose end nobody saw, both sizes stay possible until somebody has looked.

const NEVER: u64 = u64::MAX;

#[derive(Clone, Copy, Debug)]
struct Size {
    blocks: u64,
    start: u64,
    /// Since when it is another one.
    superseded: u64,
}

/// See the module. Times are a model's.
#[derive(Debug)]
pub struct Sizes(Vec<Size>);

impl Sizes {
    /// It has so many blocks.
    #[must_use]
    pub fn new(blocks: u64) -> Self {
        Self(vec![Size {
            blocks,
            start: 0,
            superseded: NEVER,
        }])
    }

    /// It is to have so many from now on.
    pub fn begin(&mut self, blocks: u64, now: u64) {
        self.0.push(Size {
            blocks,
            start: now,
            superseded: NEVER,
        });
    }

    /// It has so many, and no others.
    ///
    /// # Errors
    /// Where it cannot have so many.
    pub fn settle(&mut self, blocks: u64, now: u64) -> Result<(), String> {
        let known = |size: &Size| size.blocks == blocks && size.superseded == NEVER;
        if !self.0.iter().any(known) {
            return Err(format!("{blocks} blocks, of {:?}", self.0));
        }
        for size in &mut self.0 {
            if size.blocks != blocks {
                size.superseded = size.superseded.min(now);
            }
        }
        Ok(())
    }

    /// What was begun has changed nothing.
    pub fn refuse(&mut self, begun: u64) {
        self.0.retain(|size| size.start != begun);
    }

    /// Those that it may have had at some time since then.
    pub fn since(&self, since: u64) -> impl Iterator<Item = u64> {
        let had = self.0.iter().filter(move |size| size.superseded > since);
        had.map(|size| size.blocks)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sizes(of: &Sizes, since: u64) -> Vec<u64> {
        of.since(since).collect()
    }

    #[test]
    fn both_sizes_are_possible_until_somebody_has_looked() {
        let mut all = Sizes::new(8);
        all.begin(4, 3);
        assert_eq!(sizes(&all, 4), [8, 4]);
        assert!(all.settle(5, 6).is_err());
        assert!(all.settle(4, 6).is_ok());
        assert_eq!(sizes(&all, 5), [8, 4]);
        assert_eq!(sizes(&all, 6), [4]);
        assert!(all.settle(8, 7).is_err());
    }

    #[test]
    fn what_was_refused_was_never_a_size() {
        let mut all = Sizes::new(8);
        all.begin(4, 3);
        all.refuse(3);
        assert_eq!(sizes(&all, 3), [8]);
    }
}
