//! The losses of MP-MAE.
