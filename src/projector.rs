//! The engine: from deliveries to durable replicas.
//!
//! [`lane`] is the pure machine for one stream of one projection; everything that waits is
//! around it.

pub mod lane;
