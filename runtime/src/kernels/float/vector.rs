//! The few operations on one vector register that the shared kernels are written in.
#![allow(unsafe_code)]

/// One register of f32 lanes. A [`PANEL`](crate::model::float_layout::PANEL) is a whole number of them.
///
/// # Safety
/// The lanes are `f32`, [`Vector::load`] and [`Vector::store`] touch exactly [`Vector::LANES`] values from their address on,
/// which need not be aligned, and no method does anything else to memory.
pub(super) unsafe trait Vector: Copy {
    /// Lanes: 4, 8 or 16.
    const LANES: usize;

    /// The lanes from `at` on.
    ///
    /// # Safety
    /// `at` may be read for [`Vector::LANES`] values, and the processor has the instructions. Because a vector begins its life
    /// in one of the two functions marked unsafe for this reason, the methods of a vector need not ask again.
    unsafe fn load(at: *const f32) -> Self;

    /// One value in every lane.
    ///
    /// # Safety
    /// The processor has the instructions.
    unsafe fn splat(value: f32) -> Self;

    /// `1 / sqrt(value)` in every lane, rounded twice.
    ///
    /// # Safety
    /// The processor has the instructions.
    #[inline(always)]
    unsafe fn inverse_root(value: f32) -> Self {
        // SAFETY: the caller vouches for the instructions.
        unsafe { Self::splat(1.0).div(Self::splat(value).sqrt()) }
    }

    /// Writes the lanes from `at` on.
    ///
    /// # Safety
    /// `at` may be written for [`Vector::LANES`] values.
    unsafe fn store(self, at: *mut f32);

    /// Asks for the cache line at `at`, which may be any address.
    #[inline(always)]
    fn prefetch(_at: *const f32) {}

    /// `self + other`.
    fn add(self, other: Self) -> Self;
    /// `self - other`.
    fn sub(self, other: Self) -> Self;
    /// `self * other`.
    fn mul(self, other: Self) -> Self;
    /// `self / other`.
    fn div(self, other: Self) -> Self;
    /// `self * factor + term`, rounded once if the set has the instruction, else twice.
    fn mul_add(self, factor: Self, term: Self) -> Self;
    /// The square root.
    fn sqrt(self) -> Self;
    /// The magnitude.
    fn abs(self) -> Self;
    /// `self` where `of < limit`, else `other`.
    fn where_less(self, of: Self, limit: Self, other: Self) -> Self;
    /// The sum of the lanes, added pairwise.
    fn sum(self) -> f32;
}
