//! The end-to-end tests, on real parts. One executable: what they share is compiled and linked once.

#![allow(clippy::unwrap_used, clippy::missing_panics_doc, clippy::similar_names, unreachable_pub, reason = "tests")]

#[macro_use]
#[path = "../support/mod.rs"]
mod support;

mod apply;
mod backends;
mod bad_tags;
mod breaker;
mod check;
mod checks;
mod churn;
mod claims;
mod cli;
mod compose;
mod connector;
mod contract;
mod crash;
mod day;
mod demo;
mod deploy;
mod deployments;
mod discovery;
mod docs;
mod events;
mod explain;
mod file;
mod fleet;
mod guard;
mod health;
mod http;
mod identity;
mod isolation;
mod jobs;
mod leader;
mod live;
mod local;
mod mariadb;
mod nomad;
mod observe;
mod openapi;
mod out;
mod page;
mod prometheus;
mod reloads;
mod repair;
mod review;
mod routes;
mod runtime;
mod scenarios;
mod settings;
mod tags;
mod tenant;
mod uninstall;
mod upgrade;
mod validation;
mod writers;
