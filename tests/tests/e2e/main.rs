//! The fleet as its users see it: real servers, real binaries, real messages. A module a promise.

mod cache;
mod cancel;
mod cluster;
mod doors;
mod faults;
mod ids;
mod load;
mod modalities;
mod outages;
mod overload;
mod python;
mod quantize;
mod refuse;
mod releases;
mod sessions;
mod view;
