//! What the blocks of a volume may hold: the slow, obvious model.

/// For each block, every tag that a read may return; the last one is the newest.
#[derive(Clone, Debug)]
pub struct Model {
    pub blocks: Vec<Vec<u64>>,
}

impl Model {
    pub fn new(blocks: u64) -> Self {
        Self {
            blocks: vec![vec![0]; blocks as usize],
        }
    }

    /// A change begins: until it is sure, either may be found.
    pub fn begin(&mut self, at: u64, blocks: u64, tag: u64) {
        for block in &mut self.blocks[at as usize..(at + blocks) as usize] {
            block.push(tag);
        }
    }

    /// The newest is what is found from now on, also after a loss of power.
    pub fn sure(&mut self, at: u64, blocks: u64) {
        for block in &mut self.blocks[at as usize..(at + blocks) as usize] {
            *block = vec![*block.last().unwrap()];
        }
    }

    pub fn all_sure(&mut self) {
        self.sure(0, self.blocks.len() as u64);
    }

    pub fn resize(&mut self, blocks: u64) {
        self.blocks.resize(blocks as usize, vec![0]);
    }

    /// Without a loss of power the newest is found.
    pub fn expect_newest(&self, tags: &[u64], what: &str) {
        let newest: Vec<u64> = self
            .blocks
            .iter()
            .map(|block| *block.last().unwrap())
            .collect();
        let differs = newest.iter().zip(tags).position(|(a, b)| a != b);
        assert_eq!(
            differs, None,
            "{what}: block {differs:?} differs; expected {newest:?}, found {tags:?}"
        );
        assert_eq!(newest.len(), tags.len());
    }

    /// After a loss of power one of those that may be there is found.
    pub fn expect_possible(&self, tags: &[u64], what: &str) {
        for (at, (possible, tag)) in self.blocks.iter().zip(tags).enumerate() {
            assert!(
                possible.contains(tag),
                "{what}: block {at} holds {tag}, not one of {possible:?}"
            );
        }
        assert_eq!(self.blocks.len(), tags.len());
    }
}
