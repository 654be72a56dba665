//! What a model is loaded onto.

use std::sync::Arc;

use crate::Error;
use crate::backend::StepLimits;
use crate::backend::cuda::Cuda;
use crate::cuda::Card;
use crate::simd::Level;

/// What a model computes on.
#[derive(Clone)]
pub enum Device {
    /// The processor, with these instructions.
    Processor(Level),
    /// A GPU.
    Cuda(Arc<Card>),
}

impl Device {
    /// The processor of this machine at its best.
    #[must_use]
    pub fn processor() -> Device {
        Device::Processor(Level::detect())
    }
}

/// A GPU as a backend: a stream of its own, beside those of other models.
pub(crate) fn cuda(card: &Card, limits: StepLimits) -> Result<Cuda, Error> {
    Cuda::new(card.open()?, limits)
}
