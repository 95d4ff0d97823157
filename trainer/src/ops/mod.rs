//! Fused operations on maps held as rows, each with its gradient.
