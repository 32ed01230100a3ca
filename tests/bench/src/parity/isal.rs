//! Owns the way to Intel's ISA-L, which is opened while the benchmark runs: neither the build nor the
//! benchmark needs it.
#![allow(unsafe_code, reason = "a library of C functions")]

use std::ffi::{c_int, c_uchar, c_void};

use anyhow::{Context, Result, ensure};
use libloading::Library;

/// The names under which the library is looked for.
const NAMES: &[&str] = &["libisal.so.2", "libisal.so"];
/// What ISA-L keeps for each coefficient.
const TABLE_BYTES: usize = 32;
/// P+Q and XOR take strips of this alignment and a multiple of this length alone.
pub const ALIGNMENT: usize = 32;

type InitTables = unsafe extern "C" fn(c_int, c_int, *const c_uchar, *mut c_uchar);
type EncodeData =
    unsafe extern "C" fn(c_int, c_int, c_int, *const c_uchar, *const *const u8, *const *mut u8);
type InvertMatrix = unsafe extern "C" fn(*mut c_uchar, *mut c_uchar, c_int) -> c_int;
type Raid = unsafe extern "C" fn(c_int, c_int, *const *mut c_void) -> c_int;

/// The functions of the library, while it is open.
pub struct Isal {
    init_tables: InitTables,
    encode_data: EncodeData,
    invert_matrix: InvertMatrix,
    xor: Raid,
    pq: Raid,
    // Last, so that the functions do not outlive it.
    _library: Library,
}

/// Sums of strips times coefficients, ready to be computed.
pub struct Product {
    sources: usize,
    outputs: usize,
    tables: Vec<u8>,
}

impl Isal {
    /// Opens the library; `None` where it is not installed.
    pub fn open() -> Option<Self> {
        // SAFETY: the library runs no code of its own when it is opened, and these are the
        // signatures in its headers.
        unsafe {
            let library = NAMES.iter().find_map(|name| Library::new(*name).ok())?;
            Some(Self {
                init_tables: *library.get(b"ec_init_tables").ok()?,
                encode_data: *library.get(b"ec_encode_data").ok()?,
                invert_matrix: *library.get(b"gf_invert_matrix").ok()?,
                xor: *library.get(b"xor_gen").ok()?,
                pq: *library.get(b"pq_gen").ok()?,
                _library: library,
            })
        }
    }

    /// Sums by these coefficients, row by row.
    pub fn product(&self, sources: usize, coefficients: &[u8]) -> Result<Product> {
        let outputs = coefficients.len() / sources;
        let mut tables = vec![0; coefficients.len() * TABLE_BYTES];
        let (k, rows) = (c_int::try_from(sources)?, c_int::try_from(outputs)?);
        // SAFETY: there are as many coefficients, and the tables are as long, as the sizes say.
        unsafe { (self.init_tables)(k, rows, coefficients.as_ptr(), tables.as_mut_ptr()) };
        Ok(Product {
            sources,
            outputs,
            tables,
        })
    }

    /// The inverse of a square matrix of `size`.
    pub fn inverse(&self, matrix: &[u8], size: usize) -> Result<Vec<u8>> {
        ensure!(matrix.len() == size * size, "a square matrix");
        let (mut matrix, mut inverse) = (matrix.to_vec(), vec![0; size * size]);
        let n = c_int::try_from(size)?;
        // SAFETY: both are squares of this size.
        let failed = unsafe { (self.invert_matrix)(matrix.as_mut_ptr(), inverse.as_mut_ptr(), n) };
        ensure!(failed == 0, "the matrix is not invertible");
        Ok(inverse)
    }

    /// Computes a product.
    pub fn run(&self, product: &Product, sources: &[&[u8]], outputs: &mut [&mut [u8]]) {
        let bytes = length(sources, outputs);
        assert_eq!(sources.len(), product.sources);
        assert_eq!(outputs.len(), product.outputs);
        let from = pointers(sources.iter().map(|source| source.as_ptr()));
        let to = pointers_mut(outputs.iter_mut().map(|output| output.as_mut_ptr()));
        let (k, rows) = (product.sources as c_int, product.outputs as c_int);
        let tables = product.tables.as_ptr();
        // SAFETY: all strips are of this length, as many as were said when the tables were made.
        unsafe { (self.encode_data)(bytes, k, rows, tables, from.as_ptr(), to.as_ptr()) };
    }

    /// RAID 5's parity, or RAID 6's where there are two outputs.
    pub fn raid(&self, sources: &[&[u8]], outputs: &mut [&mut [u8]]) -> Result<()> {
        let bytes = length(sources, outputs);
        let function = match outputs.len() {
            1 => self.xor,
            _ => self.pq,
        };
        let from = sources.iter().map(|source| source.as_ptr().cast_mut());
        let to = outputs.iter_mut().map(|output| output.as_mut_ptr());
        let all = pointers_mut(from.chain(to));
        ensure!(
            all.iter().all(|at| at.align_offset(ALIGNMENT) == 0)
                && (bytes as usize).is_multiple_of(ALIGNMENT),
            "strips are not aligned"
        );
        let vectors = (sources.len() + outputs.len()) as c_int;
        // SAFETY: all strips are of this length and aligned; only the last are written.
        let failed = unsafe { function(vectors, bytes, all.as_ptr().cast()) };
        ensure!(failed == 0, "ISA-L refused");
        Ok(())
    }
}

/// The most strips of a stripe.
const STRIPS_MAX: usize = 32;

fn pointers(all: impl Iterator<Item = *const u8>) -> [*const u8; STRIPS_MAX] {
    let mut pointers = [std::ptr::null(); STRIPS_MAX];
    pointers
        .iter_mut()
        .zip(all)
        .for_each(|(to, from)| *to = from);
    pointers
}

fn pointers_mut(all: impl Iterator<Item = *mut u8>) -> [*mut u8; STRIPS_MAX] {
    let mut pointers = [std::ptr::null_mut(); STRIPS_MAX];
    pointers
        .iter_mut()
        .zip(all)
        .for_each(|(to, from)| *to = from);
    pointers
}

fn length(sources: &[&[u8]], outputs: &[&mut [u8]]) -> c_int {
    let bytes = sources[0].len();
    assert!(sources.len() + outputs.len() <= STRIPS_MAX);
    assert!(sources.iter().all(|source| source.len() == bytes));
    assert!(outputs.iter().all(|output| output.len() == bytes));
    c_int::try_from(bytes)
        .context("a strip is too long")
        .unwrap_or(0)
}
