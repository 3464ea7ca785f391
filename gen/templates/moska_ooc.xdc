# Clock of the unit when it is synthesised out of context; in a design, its clock constrains it.
# All inputs, aresetn included, are synchronous to aclk. The unit has one clock and no exceptions.
create_clock -name aclk -period @period@ [get_ports aclk]
