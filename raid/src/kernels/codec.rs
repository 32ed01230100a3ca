//! Owns codecs, which make parity of data, and plans, which make lost members of others.

use std::fmt;

use super::{
    MEMBERS_MAX,
    level::Level,
    matrix::{DATA_MAX, InvalidMatrix, Matrix},
    product::Product,
};

/// How the parity of a stripe follows from its data.
#[derive(Clone, Debug)]
pub struct Codec {
    matrix: Matrix,
    product: Product,
    level: Level,
}

/// More members are lost than there is parity.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unrecoverable {
    /// How many are lost.
    pub lost: usize,
    /// How many may be.
    pub parity: usize,
}

impl fmt::Display for Unrecoverable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { lost, parity } = self;
        write!(f, "{lost} members are lost, {parity} can be restored")
    }
}

impl std::error::Error for Unrecoverable {}

impl Codec {
    /// Reed-Solomon with `data` + `parity` members, by the matrix of the crate reed-solomon-erasure.
    pub fn new(data: usize, parity: usize) -> Result<Self, InvalidMatrix> {
        Matrix::vandermonde(data, parity).map(Self::from)
    }

    /// RAID 5: one parity member, the XOR of all data.
    pub fn xor(data: usize) -> Result<Self, InvalidMatrix> {
        Matrix::powers(data, 1).map(Self::from)
    }

    /// RAID 6: P is the XOR of all data, Q that of data member `i` times `2^i`.
    pub fn pq(data: usize) -> Result<Self, InvalidMatrix> {
        Matrix::powers(data, 2).map(Self::from)
    }

    /// A codec by coefficients that were stored: a row of `data` for each parity member. Refused where
    /// there are losses of up to `parity` members that they could not undo.
    pub fn from_matrix(
        data: usize,
        parity: usize,
        coefficients: &[u8],
    ) -> Result<Self, InvalidMatrix> {
        Matrix::new(data, parity, coefficients.to_vec()).map(Self::from)
    }

    /// The same codec with kernels of another level than the best.
    ///
    /// # Panics
    /// Where this processor lacks the level.
    #[must_use]
    pub fn with_level(self, level: Level) -> Self {
        Self::by(self.matrix, level)
    }

    fn by(matrix: Matrix, level: Level) -> Self {
        let (data, parity) = (matrix.data(), matrix.parity());
        let product = Product::new(parity, data, matrix.coefficients(), level);
        Self {
            matrix,
            product,
            level,
        }
    }

    /// How many data members there are.
    pub fn data(&self) -> usize {
        self.matrix.data()
    }

    /// How many parity members there are, which is how many members may be lost.
    pub fn parity(&self) -> usize {
        self.matrix.parity()
    }

    /// How many members there are.
    pub fn members(&self) -> usize {
        self.data() + self.parity()
    }

    /// The coefficients as [`Codec::from_matrix`] takes them.
    pub fn coefficients(&self) -> &[u8] {
        self.matrix.coefficients()
    }

    /// Makes all parity of all data. All strips are of one length, here and below.
    ///
    /// # Panics
    /// Where strips differ in length or are not as many as members; here and below.
    pub fn encode(&self, data: &[&[u8]], parity: &mut [&mut [u8]]) {
        self.product.apply(0..self.data(), data, parity, false);
    }

    /// Brings all parity up to date after data member `index` changed by `delta`, the XOR of its old
    /// and its new bytes.
    pub fn update(&self, index: usize, delta: &[u8], parity: &mut [&mut [u8]]) {
        self.product.apply(index..index + 1, &[delta], parity, true);
    }

    /// Prepares to restore members that are lost, each named once.
    pub fn plan(&self, lost: &[usize]) -> Result<Plan, Unrecoverable> {
        let members = self.members();
        let mut is_lost = [false; MEMBERS_MAX];
        for &member in lost {
            assert!(member < members, "member {member} of {members}");
            assert!(!is_lost[member], "member {member} is lost twice");
            is_lost[member] = true;
        }
        if lost.len() > self.parity() {
            let (lost, parity) = (lost.len(), self.parity());
            return Err(Unrecoverable { lost, parity });
        }
        // Data first: what is there needs no arithmetic, and P comes next, which is cheap.
        let present = (0..members).filter(|&member| !is_lost[member]);
        let sources: Vec<usize> = present.take(self.data()).collect();
        let coefficients = self.matrix.restoring(&sources, lost);
        let product =
            |rows, coefficients| Product::new(rows, self.data(), coefficients, self.level);
        Ok(Plan {
            all: product(lost.len(), &coefficients),
            each: coefficients
                .chunks(self.data())
                .map(|row| product(1, row))
                .collect(),
            sources,
            lost: lost.to_vec(),
        })
    }
}

impl From<Matrix> for Codec {
    fn from(matrix: Matrix) -> Self {
        Self::by(matrix, Level::best())
    }
}

/// How certain lost members of a stripe follow from certain others, prepared once for all stripes that
/// lost the same members.
#[derive(Clone, Debug)]
pub struct Plan {
    sources: Vec<usize>,
    lost: Vec<usize>,
    all: Product,
    each: Vec<Product>,
}

impl Plan {
    /// The members that must be read, as many as there are data members, in rising order. All data
    /// members that are not lost are among them.
    pub fn sources(&self) -> &[usize] {
        &self.sources
    }

    /// The lost members, in the order in which they were named.
    pub fn lost(&self) -> &[usize] {
        &self.lost
    }

    /// Makes all lost members, in the order of [`Plan::lost`], of the strips of [`Plan::sources`].
    pub fn reconstruct(&self, sources: &[&[u8]], lost: &mut [&mut [u8]]) {
        self.all.apply(0..self.sources.len(), sources, lost, false);
    }

    /// Makes only the lost member that comes at `index` in [`Plan::lost`].
    pub fn reconstruct_one(&self, index: usize, sources: &[&[u8]], lost: &mut [u8]) {
        self.each[index].apply(0..self.sources.len(), sources, &mut [lost], false);
    }
}

const _: () = assert!(MEMBERS_MAX > DATA_MAX);

#[cfg(test)]
mod tests {
    use super::*;

    fn strips(count: usize, bytes: usize) -> Vec<Vec<u8>> {
        let byte = |strip: usize, at: usize| (strip * 89 + at * at * 7 + at * 31 + 5) as u8;
        (0..count)
            .map(|strip| (0..bytes).map(|at| byte(strip, at)).collect())
            .collect()
    }

    fn all_members(codec: &Codec, bytes: usize) -> Vec<Vec<u8>> {
        let mut members = strips(codec.members(), bytes);
        let (data, parity) = members.split_at_mut(codec.data());
        let data: Vec<&[u8]> = data.iter().map(Vec::as_slice).collect();
        let mut parity: Vec<&mut [u8]> = parity.iter_mut().map(Vec::as_mut_slice).collect();
        codec.encode(&data, &mut parity);
        members
    }

    #[test]
    fn what_is_lost_comes_back() {
        for codec in [
            Codec::new(4, 2),
            Codec::pq(5),
            Codec::xor(3),
            Codec::new(1, 4),
        ] {
            let codec = codec.unwrap();
            let members = all_members(&codec, 515);
            for losses in 0..1usize << codec.members() {
                let lost: Vec<usize> = (0..codec.members())
                    .filter(|member| losses >> member & 1 == 1)
                    .collect();
                let Ok(plan) = codec.plan(&lost) else {
                    assert!(lost.len() > codec.parity());
                    continue;
                };
                let sources: Vec<&[u8]> = plan.sources().iter().map(|&m| &members[m][..]).collect();
                let mut restored = vec![vec![0xee; 515]; lost.len()];
                let mut outputs: Vec<&mut [u8]> =
                    restored.iter_mut().map(Vec::as_mut_slice).collect();
                plan.reconstruct(&sources, &mut outputs);
                for (index, &member) in lost.iter().enumerate() {
                    assert_eq!(restored[index], members[member], "{lost:?}");
                    restored[index].fill(0x11);
                    plan.reconstruct_one(index, &sources, &mut restored[index]);
                    assert_eq!(restored[index], members[member], "{lost:?}");
                }
            }
        }
    }

    #[test]
    fn an_update_is_as_good_as_encoding_anew() {
        let codec = Codec::new(6, 3).unwrap();
        let mut members = all_members(&codec, 100);
        let delta = strips(1, 100).remove(0);
        for (byte, change) in members[4].iter_mut().zip(&delta) {
            *byte ^= change;
        }
        let (data, parity) = members.split_at_mut(6);
        let mut parity: Vec<&mut [u8]> = parity.iter_mut().map(Vec::as_mut_slice).collect();
        codec.update(4, &delta, &mut parity);
        let mut anew = vec![vec![0; 100]; 3];
        let data: Vec<&[u8]> = data.iter().map(Vec::as_slice).collect();
        let mut outputs: Vec<&mut [u8]> = anew.iter_mut().map(Vec::as_mut_slice).collect();
        codec.encode(&data, &mut outputs);
        assert!(
            parity
                .iter()
                .zip(&anew)
                .all(|(updated, anew)| *updated == anew)
        );
    }

    #[test]
    fn too_many_losses_are_refused() {
        let codec = Codec::pq(4).unwrap();
        let refusal = codec.plan(&[0, 2, 5]).unwrap_err();
        assert_eq!(refusal, Unrecoverable { lost: 3, parity: 2 });
        let text = "3 members are lost, 2 can be restored";
        assert_eq!(refusal.to_string(), text);
    }
}
