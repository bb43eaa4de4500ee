// SPDX-License-Identifier: GPL-2.0
#include "../../guest-driver/shim.c"
