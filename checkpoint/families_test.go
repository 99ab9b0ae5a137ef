package checkpoint_test

import _ "conquer/llama" // the tests of this package open and save its models
