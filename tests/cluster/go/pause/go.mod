module nemo-steerlm.test/pause

go 1.25.0
