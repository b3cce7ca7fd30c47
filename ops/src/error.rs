//! Errors of operators, and whose fault they are.

use prefgraph_nn as nn;

/// Whose fault an error is, and so what helps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The user's: a setting, a file or an edge. The message says what would have been accepted.
    User,
    /// The training's: it has driven numbers out of range. What is trained is spoilt, and repeating the step would fail again.
    Training,
    /// The library's: no input should be able to cause it.
    Library,
}

/// Why an operator refused its settings, its shapes or its inputs.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{message}")]
pub struct OpError {
    message: String,
    fault: Fault,
}

impl OpError {
    /// A mistake of the user: the message says what was found, and what would have been accepted.
    pub fn new(message: impl Into<String>) -> Self {
        Self { message: message.into(), fault: Fault::User }
    }

    /// [`Fault::Training`].
    pub fn diverged(message: impl Into<String>) -> Self {
        Self { message: message.into(), fault: Fault::Training }
    }

    /// Values that come of what is trained are not finite, at this step: [`Fault::Training`]. At the first one that need not be the training's
    /// doing, though an update of it may have been measured already.
    pub fn not_finite(step: u64, what: impl std::fmt::Display) -> Self {
        Self::diverged(match step {
            0 => format!(
                "{what}: at the first step the frozen network's weights, its inputs or a setting of the loss may be at fault, or a learning rate \
                 that is far too large"
            ),
            _ => format!("{what}: the training has diverged, or an input holds values that are not finite"),
        })
    }

    /// [`Fault::Library`].
    pub fn internal(message: impl std::fmt::Display) -> Self {
        Self { message: format!("internal error, please report it: {message}"), fault: Fault::Library }
    }

    /// Whose fault it is.
    pub fn fault(&self) -> Fault {
        self.fault
    }
}

impl From<nn::Error> for OpError {
    fn from(e: nn::Error) -> Self {
        let fault = if matches!(e, nn::Error::Internal(_)) { Fault::Library } else { Fault::User };
        Self { message: e.to_string(), fault }
    }
}

impl From<dfdx::tensor::CpuError> for OpError {
    fn from(e: dfdx::tensor::CpuError) -> Self {
        Self::new(format!("dfdx: {e}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_of_a_network_keeps_whose_fault_it_is() {
        let internal = OpError::from(nn::Error::Internal("a defect".into()));
        assert_eq!(
            (internal.fault(), internal.to_string()),
            (Fault::Library, OpError::internal("a defect").to_string())
        );
        assert_eq!(OpError::from(nn::Error::Setting("a typo".into())).fault(), Fault::User);
    }
}
